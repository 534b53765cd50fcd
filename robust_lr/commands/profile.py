"""``robust-lr profile``: show the geometry and the cost of each layer of a network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from .terminal import console, json_option, say, write_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..models.geometry import Layer

#: maximum side of an image in pixels, which keeps counting the windows fast
MAX_SIDE = 4096


@click.command()
@click.argument("model")
@click.option(
    "--image-size", type=int, default=224, show_default=True, help="Side of the image in pixels.", metavar="N"
)
@click.option("--channels", type=int, default=3, show_default=True, help="Channels of the image.", metavar="N")
@click.option("--classes", type=int, default=1000, show_default=True, help="Classes of the data set.", metavar="N")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the model, e.g. stem=stride2; may be repeated.",
)
@json_option()
def profile(
    model: str, image_size: int, channels: int, classes: int, overrides: tuple[str, ...], json_file: Path | None
) -> None:
    """Show the feature map, the window, the parameters and the multiply-adds of each layer of MODEL.

    Near the border, part of a window is outside the feature map; "taps" is the mean number of positions inside it. A
    warning names the layers whose window covers the whole map, or whose map is a single pixel, because a local relation
    is not local there.
    """
    import torch

    from ..config.training import set_values
    from ..models.build import build_model
    from ..models.geometry import layers, warnings
    from ..utils.checks import check_at_least
    from ..utils.errors import InputError

    check_at_least(1, image_size=image_size, channels=channels, classes=classes)
    if image_size > MAX_SIDE:
        raise InputError(f"`image_size` = {image_size}: must be at most {MAX_SIDE} pixels")
    options: dict[str, Any] = {}
    set_values(options, overrides, "key=value, e.g. stem=stride2")
    with torch.device("meta"):
        network = build_model(model, num_classes=classes, in_channels=channels, **options)
        found = layers(network, torch.empty(1, channels, image_size, image_size))
    console.print(layer_table(found, f"{model} on an image of {image_size} x {image_size}"))
    total = sum(parameter.numel() for parameter in network.parameters())
    say(f"{total:,} parameters, {sum(layer.multiply_adds for layer in found):,} multiply-adds")
    words = warnings(found)
    for line in words:
        say(f"warning: {line}")
    if json_file is not None:
        write_record(
            json_file,
            {
                "schema": 1,
                "model": {"name": model, "num_classes": classes, "in_channels": channels, **options},
                "image_size": image_size,
                "parameters": total,
                "layers": [{**asdict(layer), "covers_map": layer.covers_map} for layer in found],
                "warnings": words,
            },
        )


def layer_table(found: Sequence[Layer], title: str) -> Table:
    """Return a table with one line per layer."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("kind", overflow="fold")
    for heading in ("map", "window", "taps", "params", "mult.-adds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in found:
        taps = f"{layer.taps[0]:.1f}" + (" (all)" if layer.covers_map else "") if layer.is_spatial else "-"
        table.add_row(
            Text(layer.name),
            Text(layer.kind),
            " to ".join(f"{h}x{w}" for h, w in dict.fromkeys((layer.input, layer.output))),
            "x".join(map(str, layer.window)),
            taps,
            f"{layer.parameters:,}",
            f"{layer.multiply_adds:,}",
        )
    return table
