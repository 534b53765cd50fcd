"""robust-lr: adversarial training and white-box robustness evaluation of image classifiers.

Pixels are in [0, 1] everywhere, eps and step sizes in the same unit (``eps=8/255``); normalization is inside the model.
"""

import os
from importlib import metadata

# Before PyTorch loads OpenMP: threads that wait shall sleep. On two cores and beside another process, a small network
# takes 3 to 4 times as long with spinning ones; alone on the machine, 0.6 times (benchmarks/waiting_threads.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from . import attacks, config, data, protocols, reference
from .benchmark import BenchmarkResult, benchmark
from .checkpoint import load_model
from .compare import Comparison, compare
from .config import Config
from .errors import InputError, RunError
from .evaluate import evaluate
from .merge import merge
from .models import MODELS, build_model
from .ops import local_relation
from .results import Result
from .runs import train_run
from .sanity import sanity
from .sources import load_source
from .sweep import sweep
from .targets import Targets, draw_targets, load_targets
from .train import Metrics, adversarial_train

__version__ = metadata.version("robust-lr")

__all__ = [
    "MODELS",
    "BenchmarkResult",
    "Comparison",
    "Config",
    "InputError",
    "Metrics",
    "Result",
    "RunError",
    "Targets",
    "adversarial_train",
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
    "sweep",
    "train_run",
]
