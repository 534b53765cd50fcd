"""Names of models, data sets, protocols, guards, recipes and configs, available without importing PyTorch.

``python -m robust_lr.commands.catalog`` writes ``catalog.json``; a test compares it with the modules that define the
names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

FILE = Path(__file__).with_name("catalog.json")

KINDS = ("models", "data", "protocols", "guards", "recipes", "configs")


def catalog() -> dict[str, dict[str, str]]:
    """Return the names of each kind, each with a line of description that may be empty."""
    found: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def collect() -> dict[str, dict[str, str]]:
    """Build the catalog from the modules that define the names."""
    from ..config.recipes import RECIPES
    from ..config.training import shipped
    from ..data.registry import DATASETS
    from ..evaluation.guards import GUARDS
    from ..models.build import MODELS
    from ..protocols.presets import PROTOCOLS, SWEEPS

    def names(among: Mapping[str, object]) -> dict[str, str]:
        return dict.fromkeys(among, "")

    return {
        "models": names(MODELS),
        "data": names(DATASETS),
        "protocols": {name: str(protocol) for name, protocol in (PROTOCOLS | SWEEPS).items()},
        "guards": {name: (guard.__doc__ or "").partition("\n")[0] for name, guard in GUARDS.items()},
        "recipes": names(RECIPES),
        "configs": names(shipped()),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(collect(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
