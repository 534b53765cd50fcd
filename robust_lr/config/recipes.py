"""Recipes of adversarial training by name: what images are attacked with, and what is learned from them.

A recipe stands for its values. Those of a file replace the recipe's; ``--set recipe=NAME`` replaces the file's, and
what is set after it replaces the recipe's. The schedule and the network belong to the experiment, not to the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..utils.checks import choose

Table = Mapping[str, Any]

#: what every recipe says of the loss, unless it says otherwise
_PLAIN = {"loss": "cross-entropy", "mix": 0.0, "clean_start": 0.0, "label_smoothing": 0.0}


def _recipe_for(protocol: str, *, validation: Table | None = None, **train: Any) -> dict[str, dict[str, Any]]:
    return {"attack": {"protocol": protocol}, "train": {**_PLAIN, **train}, "validation": dict(validation or {})}


RECIPES: Mapping[str, Mapping[str, Table]] = {
    # no attack: the same loop learns from the images as they are
    "regular": _recipe_for("none"),
    # Hu et al. 2019 (LR-Net), appendix
    "lrnet": _recipe_for("lrnet-train"),
    # Kannan et al. 2018, the released code: half of each batch is clean
    "alp-release": _recipe_for("alp-train", mix=0.5, label_smoothing=0.1),
    # Xie et al. 2019 (feature denoising); they draw the clean start for each GPU's batch, we draw it for each image
    "xie2019": _recipe_for("xie2019-train", clean_start=0.2, label_smoothing=0.1),
    # Madry et al. 2018, CIFAR-10, with the 10 steps of Rice et al. 2020
    "madry": _recipe_for("madry-train"),
    # Zhang et al. 2019, CIFAR-10
    "trades": _recipe_for("trades-train", loss="trades", beta=6.0),
    # Wong et al. 2020, CIFAR-10, with their guard against catastrophic over-fitting
    "fast": _recipe_for("fast-train", validation={"images": 256, "max_drop": 0.2}),
}


def complete_with_recipe(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return ``table`` with the values of a recipe where it has none of its own."""
    recipe = choose("recipe", name, RECIPES)
    both = {section: {**values, **table[section]} for section, values in recipe.items() if _is_table(table, section)}
    return {**recipe, **table, **both}


def replace_by_recipe(table: dict[str, Any], name: str) -> None:
    """Put the values of a recipe into ``table``, whose own recipe and [attack] are replaced as a whole."""
    table.pop("recipe", None)
    for section, values in choose("recipe", name, RECIPES).items():
        kept = table[section] if section != "attack" and _is_table(table, section) else {}
        table[section] = {**kept, **values}


def _is_table(table: Mapping[str, Any], section: str) -> bool:
    return isinstance(table.get(section), Mapping)
