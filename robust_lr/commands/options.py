"""Which model and which images: the options that commands share, and what they choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..utils.errors import InputError
from .terminal import grouped

if TYPE_CHECKING:
    from torch import nn

    from ..data.dataset import Dataset
    from ..models.layers.basic import Statistics

of_model, of_data = grouped("Model"), grouped("Images")
_PATH = click.Path(path_type=Path)

_OPTIONS = (
    of_model("--checkpoint", type=_PATH, help="Run folder or weights file.  [default: shipped]"),
    of_model(
        "--model",
        "source",
        metavar="NAME",
        help="Instead: a name of `robust-lr list models`, torchvision:NAME, timm:NAME, or module.path:callable or "
        "file.py:callable, which is run and returns a torch.nn.Module. Options: --set model.KEY=VALUE.",
    ),
    of_model("--weights", type=_PATH, help="Of --model: safetensors, or .pt with nothing but tensors."),
    of_model("--preset", metavar="NAME", help="What --model's input is normalized by: imagenet, cifar10 or none."),
    of_model("--mean", metavar="X,X,X", help="Instead of a preset: the means, one a channel."),
    of_model("--std", metavar="X,X,X", help="And the standard deviations."),
    of_data("--data", "data_name", metavar="NAME", help="Data set.  [default: what the checkpoint was trained on]"),
    of_data("--root", type=_PATH, help="Folder of a data set that does not ship."),
    of_data("--limit", type=int, default=0, help="Only so many test images, evenly spaced.  [default: all]"),
)


def model_and_images(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``command`` the options, whose values it hands to ``choose``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A model on its device, test images, the model's name for results, and the folder for what is found."""

    model: nn.Module
    data: Dataset
    name: str
    folder: Path


def choose(
    *,
    checkpoint: Path | None,
    source: str | None,
    weights: Path | None,
    preset: str | None,
    mean: str | None,
    std: str | None,
    data_name: str | None,
    root: Path | None,
    limit: int,
    device: str,
    options: Mapping[str, Any],
) -> Choice:
    """What the options say together; InputError where they contradict each other or name what is not there."""
    from .. import data as data_room
    from ..data.dataset import spread
    from ..models import checkpoint as checkpoint_room
    from ..models.external import load_source, source_name
    from ..utils.checks import at_least
    from ..utils.devices import pick_device

    at_least(0, limit=limit)
    chosen_device = pick_device(device)
    if source is None:
        own = {
            "--weights": weights,
            "--preset": preset,
            "--mean": mean,
            "--std": std,
            "--set model.KEY": options or None,
        }
        for option, given in own.items():
            if given is not None:
                raise InputError(f"{option} belongs to a model: give --model NAME as well")
        model: nn.Module = checkpoint_room.load_model(checkpoint)
        trained_on = checkpoint_room.about(checkpoint).get("data", data_room.DEFAULT)
        data = data_room.load(data_name or trained_on, "test", root)
        name = checkpoint_name(checkpoint)
    else:
        if checkpoint is not None:
            raise InputError("which model? give one of --checkpoint and --model")
        if data_name is None:
            raise InputError("which images? a model of --model needs --data NAME")
        data = data_room.load(data_name, "test", root)
        model = load_source(
            source,
            weights=weights,
            num_classes=data.num_classes,
            in_channels=data.image_shape[0],
            normalization=normalization(preset, mean, std),
            options=options,
        )
        name = source_name(source, weights)
    return Choice(
        model=model.to(chosen_device),
        data=spread(data, limit) if limit else data,
        name=name,
        folder=checkpoint if checkpoint is not None and checkpoint.is_dir() else Path("runs") / name,
    )


def checkpoint_name(checkpoint: Path | None) -> str:
    """What a result calls a checkpoint: a run's weights go by the name of the run."""
    from ..models.checkpoint import WEIGHTS

    if checkpoint is None:
        return "lrnet26-shipped"
    if checkpoint.is_dir() or checkpoint.name != WEIGHTS:
        return checkpoint.resolve().name.removesuffix(".safetensors")
    return checkpoint.resolve().parent.name


def normalization(preset: str | None, mean: str | None, std: str | None) -> str | Statistics | None:
    """What --preset, --mean and --std say together."""
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both")
    if mean is None or std is None:
        return preset
    if preset is not None:
        raise InputError("which normalization? give --preset, or --mean and --std")
    return numbers("--mean", mean), numbers("--std", std)


def numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r}: numbers with commas between them are needed, one a channel") from None
