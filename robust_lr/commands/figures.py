"""``robust-lr figure``: the paper's Figures 4 and 5 of a network of the user's."""

from __future__ import annotations

from pathlib import Path

import click

from ..utils.errors import InputError
from .options import checkpoint_name
from .terminal import say

_PATH = click.Path(path_type=Path)
_CHECKPOINT = click.option(
    "--checkpoint", type=_PATH, help="Run folder or weights file of an LR-Net.  [default: shipped]"
)


@click.group()
def figure() -> None:
    """Draw what an LR-Net has learnt. Needs matplotlib: pip install matplotlib."""


@figure.command()
@_CHECKPOINT
@click.option("--out", type=_PATH, default=Path("priors.png"), show_default=True, help="PNG file.")
def priors(checkpoint: Path | None, out: Path) -> None:
    """Draw the geometric priors after softmax, by stage and group (the paper's Figure 4)."""
    from ..models.checkpoint import load_model
    from ..paper.figures import draw_priors, save
    from ..paper.inspection import learnt_priors

    save(draw_priors(learnt_priors(load_model(checkpoint)), checkpoint_name(checkpoint)), out)
    say(f"Written to {out}")


@figure.command()
@_CHECKPOINT
@click.option("--image", type=_PATH, required=True, help="Image file.")
@click.option("--size", type=int, help="Resize the short side to so many pixels and crop the center.  [default: as is]")
@click.option("--pixel", metavar="ROW,COLUMN", help="Whose window is drawn.  [default: the middle]")
@click.option("--group", type=int, help="Of channels, in every stage.  [default: the one whose keys vary most]")
@click.option("--out", type=_PATH, default=Path("composability.png"), show_default=True, help="PNG file.")
def composability(
    checkpoint: Path | None, image: Path, size: int | None, pixel: str | None, group: int | None, out: Path
) -> None:
    """Draw key and query maps of an image, and the weights of one pixel's window on it (the paper's Figure 5)."""
    from ..models.checkpoint import load_model
    from ..paper.figures import draw_compositions, save
    from ..paper.inspection import STAGES, compositions, read_image

    model = load_model(checkpoint)
    x = read_image(image, len(model.normalize.mean), size)
    at = (x.shape[1] // 2, x.shape[2] // 2) if pixel is None else parse(pixel)
    found = compositions(model, x, at, None if group is None else [group] * len(STAGES))
    save(draw_compositions(x, at, found, checkpoint_name(checkpoint)), out)
    say(f"Written to {out}")


def parse(pixel: str) -> tuple[int, int]:
    """ "12,30" -> (12, 30)"""
    try:
        row, column = map(int, pixel.split(","))
    except ValueError:
        raise InputError(f"pixel {pixel!r}: write ROW,COLUMN, e.g. 112,112") from None
    return row, column
