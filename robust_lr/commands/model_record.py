"""Records of how the model of an evaluation was loaded, with which ``robust-lr transfer`` loads it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import InputError

if TYPE_CHECKING:
    from torch import nn

MODEL = "model.json"
_PATHS, _WORDS = ("checkpoint", "weights"), ("source", "preset", "mean", "std")


def write_model_record(folder: Path, where: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Write the options that choose the model to ``folder``, with absolute paths.

    Args:
        where: values of the options of ``options.model_and_images``.
        options: arguments of the model, from --set model.KEY=VALUE.
    """
    from ..utils.files import write_json

    paths = {name: None if where[name] is None else str(where[name].resolve()) for name in _PATHS}
    write_json(folder / MODEL, {**paths, **{name: where[name] for name in _WORDS}, "options": dict(options)})


def load_recorded_model(folder: Path, classes: int, channels: int) -> nn.Module:
    """Load the model that was attacked in ``folder``; InputError if that would run the user's code."""
    from ..models.checkpoint import load_model
    from ..models.external import LIBRARIES, load_source
    from .options import normalization

    try:
        record = json.loads((folder / MODEL).read_text(encoding="utf-8"))
        source, checkpoint, weights = record["source"], record["checkpoint"], record["weights"]
        preset, mean, std, options = record["preset"], record["mean"], record["std"], record["options"]
    except FileNotFoundError:
        raise InputError(f"{folder} has no record of how to load its model ({MODEL}): use `robust-lr score`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / MODEL} is damaged ({error}): use `robust-lr score`") from None
    if source is None:
        return load_model(None if checkpoint is None else Path(checkpoint))
    kind, colon, _ = source.partition(":")
    if colon and kind not in LIBRARIES:
        raise InputError(f"{folder} attacked {source}, code that is run only if you name it: use `robust-lr score`")
    return load_source(
        source,
        weights=weights,
        num_classes=classes,
        in_channels=channels,
        normalization=normalization(preset, mean, std),
        options=options,
    )
