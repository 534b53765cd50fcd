"""``robust-lr compare``: compare evaluations of several models image by image."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table
from rich.text import Text

from .terminal import console, json_option, say, write_record

if TYPE_CHECKING:
    from ..results.compare import Comparison
    from ..results.compare_groups import Difference, GroupComparison

#: separator of the runs of a group in one value; no path can contain it
_JOINT = "\0"


class _WithGroups(click.Command):
    """A command whose ``--group`` takes all arguments up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        joined: list[str] = []
        inside = False
        for word in args:
            if inside and not word.startswith("-"):
                joined[-1] = f"{joined[-1]}{_JOINT}{word}" if joined[-1] else word
                continue
            if inside and not joined[-1]:
                raise click.UsageError("--group needs the runs of a group: --group RUN RUN RUN", ctx)
            inside = word == "--group"
            joined += [word, ""] if inside else [word]
        if inside and not joined[-1]:
            raise click.UsageError("--group needs the runs of a group: --group RUN RUN RUN", ctx)
        return super().parse_args(ctx, joined)


@click.command(cls=_WithGroups)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--group", "groups", multiple=True, metavar="RUN...", help="The training runs of one kind of network, by seed."
)
@click.option(
    "--figure",
    default="robust",
    show_default=True,
    metavar="NAME",
    help="Accuracy to test: clean, robust or worst-seen.",
)
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice(["misled"]),
    help="Also test models whose verdict is misled.",
)
@json_option()
def compare(
    runs: tuple[Path, ...], groups: tuple[str, ...], figure: str, allow: tuple[str, ...], json_file: Path | None
) -> None:
    """Compare the robustness of models on the same images and targets, paired by image.

    RUNS are folders that `robust-lr attack` wrote. Each pair gets the difference of accuracies with a 95 % interval
    (Newcombe 1998, method 10) and the p-value of McNemar's exact test, corrected for the number of pairs (Holm 1979).
    Intervals and p-values treat only the images as a sample: they hold for these trained networks.

    With --group RUN... --group RUN..., kinds of networks are compared with several training runs of each, with the same
    seeds in the same order. Intervals and p-values then treat both training runs and images as samples.
    """
    from ..results.compare import FIGURES
    from ..results.compare import compare as compare_runs
    from ..results.compare_groups import compare_groups
    from ..utils.checks import check_name
    from ..utils.files import check_writable

    check_name("figure", figure, FIGURES)
    check_writable(json_file=json_file)
    if bool(runs) == bool(groups):
        raise click.UsageError("give RUN RUN ..., or --group RUN... --group RUN...")
    comparison: Comparison | GroupComparison
    if groups:
        comparison = compare_groups([group.split(_JOINT) for group in groups], allow=allow)
        console.print(group_table(comparison))
        console.print(difference_table(comparison, figure))
        misled = [name for name, verdicts in comparison.verdicts.items() if "misled" in verdicts]
    else:
        comparison = compare_runs(runs, allow=allow)
        console.print(accuracy_table(comparison))
        console.print(pair_table(comparison, figure))
        misled = [name for name, verdict in comparison.verdicts.items() if verdict == "misled"]
    if misled and not allow and figure != "clean":
        say(f"no p-value for {', '.join(misled)}: the verdict is misled; --allow misled tests it anyway")
    if json_file is not None:
        write_record(json_file, comparison.to_dict())


def accuracy_table(comparison: Comparison) -> Table:
    """Return a table of each model's accuracies and verdict."""
    shares = next(iter(comparison.accuracies.values()))
    n = shares["clean"].n
    title = Text(f"{comparison.protocol['name']} on {comparison.data}, {n} images: accuracy in %")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("model", overflow="fold")
    for figure in shares:
        table.add_column(figure, justify="right", no_wrap=True)
    table.add_column("verdict")
    for name, figures in comparison.accuracies.items():
        verdict = comparison.verdicts.get(name) or "-"
        table.add_row(Text(name), *(Text(str(figures[figure])) for figure in shares), Text(verdict))
    return table


def pair_table(comparison: Comparison, figure: str) -> Table:
    """Return a table of the paired difference and the test of each pair of models."""
    table = Table(
        title=Text(f"{figure} accuracy: differences in points, McNemar's exact test"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("first\nsecond", overflow="fold", min_width=16)
    for heading in ("first -\nsecond", "95 %\ninterval", "only\nfirst", "only\nsecond", "\np", "p\n(Holm)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in comparison.pairs_in(figure):
        low, high = pair.interval
        table.add_row(
            Text(f"{pair.first}\n{pair.second}"),
            f"{100 * pair.difference:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            str(pair.only_first),
            str(pair.only_second),
            "-" if isnan(pair.p) else f"{pair.p:.2g}",
            "-" if isnan(pair.p_holm) else f"{pair.p_holm:.2g}",
            end_section=True,
        )
    return table


def group_table(comparison: GroupComparison) -> Table:
    """Return a table of the accuracies of each group: mean, standard deviation, and every run."""
    table = Table(
        title=Text(
            f"{comparison.protocol['name']} on {comparison.data}: accuracy in %, mean +- std over training runs"
        ),
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("group", overflow="fold")
    figures = next(iter(comparison.accuracies.values()))
    for figure in figures:
        table.add_column(figure, justify="right")
    table.add_column("verdicts")
    for name, estimates in comparison.accuracies.items():
        cells = [
            Text(f"{100 * e.value:.1f} +- {100 * (e.std or 0):.1f}\n", style="bold").append(
                " ".join(f"{100 * value:.1f}" for value in e.per_run), style="not bold dim"
            )
            for e in estimates.values()
        ]
        said = [verdict or "-" for verdict in comparison.verdicts[name]]
        table.add_row(Text(name), *cells, Text("\n".join(dict.fromkeys(said))), end_section=True)
    return table


def difference_table(comparison: GroupComparison, figure: str) -> Table:
    """Return a table of each pair of groups: difference, interval over runs and images, runs that would decide."""
    table = Table(
        title=Text(f"{figure} accuracy: differences in points, over training runs and images"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("first\nsecond", overflow="fold", min_width=16)
    for heading in ("first -\nsecond", "95 %\ninterval", "\np", "p\n(Holm)", "runs to\ndecide"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in comparison.differences_in(figure):
        low, high = each.estimate.interval
        table.add_row(
            Text(f"{each.first}\n{each.second}"),
            f"{100 * each.estimate.value:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            "-" if isnan(each.p_holm) else f"{each.estimate.p:.2g}",
            "-" if isnan(each.p_holm) else f"{each.p_holm:.2g}",
            runs_to_decide(each),
            end_section=True,
        )
    return table


def runs_to_decide(difference: Difference) -> str:
    """Return the number of training runs that would decide a difference, or "decided"."""
    if difference.p_holm < 0.05:
        return "decided"
    return "more images" if difference.runs_needed is None else str(difference.runs_needed)
