"""Named recipes of adversarial training: the attack on the training images, and the loss.

A recipe is a set of config values. Values in a config file override those of the recipe that the file names;
``--set recipe=NAME`` overrides the file, and later ``--set`` options override that recipe. The schedule and the network
belong to the experiment, not to the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..utils.checks import choose

Table = Mapping[str, Any]

#: the [train] values of a recipe that does not set them itself
_PLAIN = {"loss": "cross-entropy", "mix": 0.0, "clean_start": 0.0, "label_smoothing": 0.0}


def _recipe_for(protocol: str, *, validation: Table | None = None, **train: Any) -> dict[str, dict[str, Any]]:
    return {"attack": {"protocol": protocol}, "train": {**_PLAIN, **train}, "validation": dict(validation or {})}


RECIPES: Mapping[str, Mapping[str, Table]] = {
    # no attack: regular training by the same loop
    "regular": _recipe_for("none"),
    # Hu et al. 2019 (LR-Net), appendix
    "lrnet": _recipe_for("lrnet-train"),
    # Kannan et al. 2018, the released code: half of each batch is clean
    "alp-release": _recipe_for("alp-train", mix=0.5, label_smoothing=0.1),
    # Xie et al. 2019 (feature denoising); they draw the clean start once per batch of a GPU, we draw it for each image
    "xie2019": _recipe_for("xie2019-train", clean_start=0.2, label_smoothing=0.1),
    # Madry et al. 2018, CIFAR-10, with the 10 steps of Rice et al. 2020
    "madry": _recipe_for("madry-train"),
    # Zhang et al. 2019, CIFAR-10
    "trades": _recipe_for("trades-train", loss="trades", beta=6.0),
    # Wong et al. 2020, CIFAR-10, with their guard against catastrophic overfitting
    "fast": _recipe_for("fast-train", validation={"images": 256, "max_drop": 0.2}),
}


def complete_with_recipe(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return ``table`` with its missing values taken from the recipe ``name``."""
    recipe = choose("recipe", name, RECIPES)
    both = {section: {**values, **table[section]} for section, values in recipe.items() if _is_table(table, section)}
    return {**recipe, **table, **both}


def replace_by_recipe(table: dict[str, Any], name: str) -> None:
    """Overwrite ``table`` in place with the values of the recipe ``name``; the whole [attack] section is replaced."""
    table.pop("recipe", None)
    for section, values in choose("recipe", name, RECIPES).items():
        kept = table[section] if section != "attack" and _is_table(table, section) else {}
        table[section] = {**kept, **values}


def _is_table(table: Mapping[str, Any], section: str) -> bool:
    return isinstance(table.get(section), Mapping)
