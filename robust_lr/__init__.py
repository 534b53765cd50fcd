"""robust-lr: adversarial training and white-box robustness evaluation of image classifiers.

Pixels are in [0, 1] everywhere, eps and step sizes in the same unit (``eps=8/255``); normalization is inside the model.
Names are loaded when they are first used, so that ``import robust_lr`` alone loads no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import attacks, config, data, protocols
    from .evaluation.all_targets import attack_all_targets
    from .evaluation.grid import BenchmarkResult, benchmark
    from .evaluation.harness import evaluate
    from .evaluation.sanity import sanity
    from .evaluation.score import Score, Transfer, score, transfer
    from .evaluation.sweep import sweep
    from .models.build import MODELS, build_model
    from .models.checkpoint import load_model
    from .models.external import load_source
    from .ops import reference
    from .ops.local_relation import local_relation
    from .results.compare import Comparison, compare
    from .results.merge import merge
    from .results.result import Result
    from .results.target_matrix import TargetMatrix
    from .results.targets import Targets, draw_targets, load_targets
    from .training.loop import adversarial_train
    from .training.metrics import Metrics
    from .training.run import train_run
    from .utils.errors import InputError, RunError

    __version__: str

#: public name -> the module that defines it; a module's own name stands for the module
_HOMES = {
    "MODELS": "models.build",
    "BenchmarkResult": "evaluation.grid",
    "Comparison": "results.compare",
    "Config": "config.training",
    "InputError": "utils.errors",
    "Metrics": "training.metrics",
    "Result": "results.result",
    "RunError": "utils.errors",
    "TargetMatrix": "results.target_matrix",
    "Targets": "results.targets",
    "adversarial_train": "training.loop",
    "attack_all_targets": "evaluation.all_targets",
    "attacks": "attacks",
    "benchmark": "evaluation.grid",
    "build_model": "models.build",
    "compare": "results.compare",
    "config": "config",
    "data": "data",
    "draw_targets": "results.targets",
    "evaluate": "evaluation.harness",
    "load_model": "models.checkpoint",
    "load_source": "models.external",
    "load_targets": "results.targets",
    "local_relation": "ops.local_relation",
    "merge": "results.merge",
    "protocols": "protocols",
    "reference": "ops.reference",
    "Score": "evaluation.score",
    "Transfer": "evaluation.score",
    "sanity": "evaluation.sanity",
    "score": "evaluation.score",
    "strengthen": "evaluation.strengthen",
    "transfer": "evaluation.score",
    "sweep": "evaluation.sweep",
    "train_run": "training.run",
}

__all__ = [
    "MODELS",
    "BenchmarkResult",
    "Comparison",
    "Config",
    "InputError",
    "Metrics",
    "Result",
    "RunError",
    "Score",
    "TargetMatrix",
    "Targets",
    "Transfer",
    "adversarial_train",
    "attack_all_targets",
    "attacks",
    "benchmark",
    "build_model",
    "compare",
    "config",
    "data",
    "draw_targets",
    "evaluate",
    "load_model",
    "load_source",
    "load_targets",
    "local_relation",
    "merge",
    "protocols",
    "reference",
    "sanity",
    "score",
    "strengthen",
    "sweep",
    "train_run",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("robust-lr")
    if name not in _HOMES:
        raise AttributeError(f"module 'robust_lr' has no attribute {name!r}")
    module = importlib.import_module(f".{_HOMES[name]}", __name__)
    value = module if _HOMES[name].rpartition(".")[2] == name and not hasattr(module, name) else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "__version__"})
