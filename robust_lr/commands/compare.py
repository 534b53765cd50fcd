"""``robust-lr compare``: evaluations of several models, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table
from rich.text import Text

from .terminal import console, say

if TYPE_CHECKING:
    from ..results.compare import Comparison


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--figure",
    default="robust",
    show_default=True,
    metavar="NAME",
    help="Accuracy that is tested: clean, robust or worst-seen.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure to this file.")
def compare(runs: tuple[Path, ...], figure: str, json_file: Path | None) -> None:
    """Whether one model is more robust than another. Paired, on the same images and targets.

    RUNS are folders that `robust-lr attack` wrote. Each pair gets the difference of accuracies with a 95 % interval
    (Newcombe 1998, method 10) and the p-value of McNemar's exact test, corrected for the number of pairs (Holm 1979).
    """
    from ..results.compare import FIGURES
    from ..results.compare import compare as compare_runs
    from ..utils.checks import check_name
    from ..utils.files import write_json

    check_name("figure", figure, FIGURES)
    comparison = compare_runs(runs)
    console.print(accuracy_table(comparison))
    console.print(pair_table(comparison, figure))
    if json_file is not None:
        write_json(json_file, comparison.to_dict())
        say(f"written to {json_file}")


def accuracy_table(comparison: Comparison) -> Table:
    """One line a model."""
    shares = next(iter(comparison.accuracies.values()))
    n = shares["clean"].n
    title = Text(f"{comparison.protocol['name']} on {comparison.data}, {n} images: accuracy in %")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("model", overflow="fold")
    for figure in shares:
        table.add_column(figure, justify="right", no_wrap=True)
    for name, figures in comparison.accuracies.items():
        table.add_row(Text(name), *(Text(str(figures[figure])) for figure in shares))
    return table


def pair_table(comparison: Comparison, figure: str) -> Table:
    """One line a pair."""
    table = Table(
        title=Text(f"{figure} accuracy: differences in points, McNemar's exact test"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("first\nsecond", overflow="fold", min_width=16)
    for heading in ("first -\nsecond", "95 %\ninterval", "only\nfirst", "only\nsecond", "\np", "p\n(Holm)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in comparison.of(figure):
        low, high = pair.interval
        table.add_row(
            Text(f"{pair.first}\n{pair.second}"),
            f"{100 * pair.difference:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            str(pair.only_first),
            str(pair.only_second),
            f"{pair.p:.2g}",
            f"{pair.p_holm:.2g}",
            end_section=True,
        )
    return table
