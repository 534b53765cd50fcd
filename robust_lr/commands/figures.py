"""``robust-lr figure``: draw the paper's Figures 4 and 5 for any LR-Net."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..utils.errors import InputError
from .options import checkpoint_name
from .terminal import say

if TYPE_CHECKING:
    from ..paper.inspection import Composition

_PATH = click.Path(path_type=Path)
_CHECKPOINT = click.option(
    "--checkpoint", type=_PATH, help="Run folder or weights file of an LR-Net.  [default: shipped]"
)


@click.group()
def figure() -> None:
    """Draw geometric priors or composability of an LR-Net. Needs matplotlib: pip install matplotlib."""


@figure.command()
@_CHECKPOINT
@click.option("--out", type=_PATH, default=Path("priors.png"), show_default=True, help="Picture: .png, .pdf or .svg.")
def priors(checkpoint: Path | None, out: Path) -> None:
    """Draw the geometric priors after softmax, by stage and group (the paper's Figure 4)."""
    from ..models.checkpoint import load_model
    from ..paper.figures import draw_priors
    from ..paper.inspection import learnt_priors
    from ..utils.pictures import check_picture, save_picture

    check_picture("out", out)
    save_picture(draw_priors(learnt_priors(load_model(checkpoint)), checkpoint_name(checkpoint)), out)
    say(f"Written to {out}")


@figure.command()
@_CHECKPOINT
@click.option("--image", type=_PATH, required=True, help="Image file.")
@click.option("--size", type=int, help="Resize the shorter side to N pixels and crop the center.", metavar="N")
@click.option("--pixel", metavar="ROW,COLUMN", help="Pixel whose window is drawn.  [default: the middle]")
@click.option(
    "--group", type=int, help="Group of channels in every stage.  [default: the one whose keys vary most]", metavar="N"
)
@click.option(
    "--out", type=_PATH, default=Path("composability.png"), show_default=True, help="Picture: .png, .pdf or .svg."
)
def composability(
    checkpoint: Path | None, image: Path, size: int | None, pixel: str | None, group: int | None, out: Path
) -> None:
    """Draw query and key maps of an image, and the weights of one pixel's window (the paper's Figure 5)."""
    from ..models.checkpoint import load_model
    from ..paper.figures import draw_compositions
    from ..paper.inspection import STAGES, compute_compositions, read_image
    from ..utils.pictures import check_picture, save_picture

    check_picture("out", out)
    model = load_model(checkpoint)
    x = read_image(image, len(model.normalize.mean), size)
    check_size(checkpoint, (x.shape[1], x.shape[2]))
    at = (x.shape[1] // 2, x.shape[2] // 2) if pixel is None else parse(pixel)
    found = compute_compositions(model, x, at, None if group is None else [group] * len(STAGES))
    found = larger_than_windows(found)
    save_picture(draw_compositions(x, at, found, checkpoint_name(checkpoint)), out)
    say(f"Written to {out}")


def check_size(checkpoint: Path | None, size: tuple[int, int]) -> None:
    """Check that the image has the size that the network was trained on, if its data set is available.

    Raises:
        InputError: the sizes differ; the message names both.
    """
    from .. import data
    from ..models.checkpoint import checkpoint_record

    try:
        shape = data.load(checkpoint_record(checkpoint).get("data", data.DEFAULT), "test").image_shape
    except InputError:
        return
    if size != tuple(shape[1:]):
        raise InputError(
            f"the image has {size[0]} x {size[1]} pixels, the network was trained on {shape[1]} x {shape[2]}: give "
            f"`size` {min(shape[1:])}, or an image of that size"
        )


def larger_than_windows(found: Sequence[Composition]) -> list[Composition]:
    """Return the stages whose maps are at least as large as their windows, and name the others.

    In a smaller map every window covers the whole map.

    Raises:
        InputError: there is no such stage.
    """
    shown = [one for one in found if min(one.key.shape) >= one.weights.shape[0]]
    if not shown:
        raise InputError("the maps of every stage are smaller than its windows: use a larger image")
    for one in found:
        if all(one is not other for other in shown):
            height, width = one.key.shape
            side = one.weights.shape[0]
            say(f"{one.stage} is left out: its map of {height} x {width} is smaller than its window of {side} x {side}")
    return shown


def parse(pixel: str) -> tuple[int, int]:
    """Parse a pixel: "12,30" becomes (12, 30)."""
    try:
        row, column = map(int, pixel.split(","))
    except ValueError:
        raise InputError(f"pixel {pixel!r}: write ROW,COLUMN, e.g. 112,112") from None
    return row, column
