"""Options that several commands share to choose the model and the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..utils.errors import InputError
from .completion import complete
from .terminal import option_in_group

if TYPE_CHECKING:
    from torch import nn

    from ..data.dataset import Dataset
    from ..models.layers.basic import Statistics

of_model, of_data = option_in_group("Model"), option_in_group("Images")
_PATH = click.Path(path_type=Path)

#: maximum side of an image in pixels, larger than the test images of any classifier
MAX_SIDE = 4096

_OPTIONS = (
    of_model("--checkpoint", type=_PATH, help="Run folder or weights file.  [default: shipped]"),
    of_model(
        "--model",
        "source",
        metavar="NAME",
        shell_complete=complete("models"),
        help="Model instead of a checkpoint: a name of `robust-lr list models`, torchvision:NAME, timm:NAME, or "
        "module.path:callable or file.py:callable, which is run and returns a torch.nn.Module. Arguments: --set "
        "model.KEY=VALUE.",
    ),
    of_model("--weights", type=_PATH, help="Weights of --model: safetensors, or .pt that contains only tensors."),
    of_model("--preset", metavar="NAME", help="Normalization of --model's input: imagenet, cifar10 or none."),
    of_model("--mean", metavar="X,X,X", help="Instead of --preset: mean of each channel, for pixels in [0, 1]."),
    of_model("--std", metavar="X,X,X", help="Standard deviation of each channel, with --mean."),
    of_data(
        "--data",
        "data_name",
        metavar="NAME",
        help="Data set.  [default: the one that the checkpoint was trained on]",
        shell_complete=complete("data"),
    ),
    of_data("--root", type=_PATH, help="Folder of a data set that does not ship."),
    of_data("--resize", type=int, help="Resize the shorter side of image files to N pixels, then crop.", metavar="N"),
    of_data("--crop", type=int, help="Side of the center crop.  [default: --resize]", metavar="N"),
    of_data("--images-list", type=_PATH, help="Use only the image files named in this list, one per line."),
    of_data("--limit", type=int, help="Number of test images, evenly spaced.  [default: all]", metavar="N"),
)


def model_and_images(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a model and images to ``command``, which passes their values to ``choose``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def model_alone(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a model, but not images, to ``command``."""
    for option in reversed(_OPTIONS[:6]):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The model and the images that the options choose.

    Attributes:
        model: the model on its device.
        data: the test images.
        name: the model's name in results.
        folder: folder for results.
    """

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
    resize: int | None,
    crop: int | None,
    images_list: Path | None,
    limit: int | None,
    device: str,
    options: Mapping[str, Any],
) -> Choice:
    """Load the model and the images; InputError if options conflict or something that they name does not exist."""
    from .. import data as data_room
    from ..data.dataset import spread
    from ..data.selection import find_listed
    from ..models import checkpoint as checkpoint_room
    from ..models.external import load_source, source_name
    from ..utils.checks import check_at_least
    from ..utils.devices import pick_device

    if limit is not None:
        check_at_least(1, limit=limit)
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
                raise InputError(f"{option} applies only to --model: give --model NAME too, or leave it out")
        model: nn.Module = checkpoint_room.load_model(checkpoint)
        trained_on = checkpoint_room.checkpoint_record(checkpoint).get("data", data_room.DEFAULT)
        data = test_images(data_name or trained_on, root, resize, crop)
        name = checkpoint_name(checkpoint)
    else:
        if checkpoint is not None:
            raise InputError("--checkpoint and --model both name a model: give only one of them")
        if data_name is None:
            raise InputError("--model needs images: give --data NAME")
        data = test_images(data_name, root, resize, crop)
        model = load_source(
            source,
            weights=weights,
            num_classes=data.num_classes,
            in_channels=data.image_shape[0],
            normalization=normalization(preset, mean, std),
            options=options,
        )
        name = source_name(source, weights)
    if images_list is not None:
        data = find_listed(data, images_list)
    return Choice(
        model=model.to(chosen_device),
        data=spread(data, limit) if limit else data,
        name=name,
        folder=checkpoint if checkpoint is not None and checkpoint.is_dir() else Path("runs") / name,
    )


def test_images(name: str, root: Path | None, resize: int | None, crop: int | None) -> Dataset:
    """Load the test images of a data set; image files are resized and cropped on request."""
    from functools import partial

    from .. import data as data_room
    from ..data.encoded import center_crop
    from ..utils.checks import check_at_least

    if resize is None and crop is None:
        return data_room.load(name, "test", root)
    side = crop or resize or 0
    short = resize or side
    check_at_least(1, resize=short, crop=side)
    if max(short, side) > MAX_SIDE or side > short:
        raise InputError(
            f"`crop` {side} of `resize` {short}: both must be at most {MAX_SIDE}, and the crop no larger than the "
            "resized side"
        )
    data = data_room.load(name, "test", root, transform=partial(center_crop, short=short, side=side))
    return replace(data, name=f"{data.name} ({short} -> {side} pixels)")


def checkpoint_name(checkpoint: Path | None) -> str:
    """Return the name of a checkpoint in results; weights in a run folder get the name of the folder."""
    from ..models.checkpoint import WEIGHTS

    if checkpoint is None:
        return "lrnet26-shipped"
    if checkpoint.is_dir() or checkpoint.name != WEIGHTS:
        return checkpoint.resolve().name.removesuffix(".safetensors")
    return checkpoint.resolve().parent.name


def normalization(preset: str | None, mean: str | None, std: str | None) -> str | Statistics | None:
    """Return the normalization that is set by --preset, or by --mean and --std; None without any of them."""
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both")
    if mean is None or std is None:
        return preset
    if preset is not None:
        raise InputError("--preset and --mean both set the normalization: give --preset, or --mean and --std")
    means, deviations = numbers("--mean", mean), numbers("--std", std)
    if not all(0 <= value <= 1 for value in means) or not all(0 < value <= 1 for value in deviations):
        raise InputError(
            f"--mean {mean} --std {std}: pixels are in [0, 1], and so are their means and standard deviations; divide "
            "values for 0..255 by 255"
        )
    return means, deviations


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas; InputError that names ``option`` for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r}: give numbers separated by commas, one per channel") from None
