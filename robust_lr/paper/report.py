"""The paper's tables for the terminal: the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from .. import protocols
from ..results.result import Result
from ..utils.statistics import Proportion, interval, value
from .clean_accuracy import CLEAN, Accuracy
from .stages import describe
from .tables import Results, Table


def render(table: Table, number: int, results: Results) -> RichTable:
    """The table of what was measured."""
    if table.protocols:
        return robustness(table, number, {key: found for key, found in results.items() if isinstance(found, Result)})
    return accuracies(table, number, {key: found for key, found in results.items() if isinstance(found, Accuracy)})


def accuracies(table: Table, number: int, results: Mapping[tuple[str, str, str], Accuracy]) -> RichTable:
    """Accuracy on clean images and cost: ours, as trained, and the paper's."""
    first = next(iter(results.values()))
    out = RichTable(
        title=f"Table {number}: {table.title}. {first.data}, {first.n} test images",
        caption="Accuracy in % with 95 % intervals; parameters and multiply-adds of the networks as trained. "
        "The paper's figures are on ImageNet at full size.",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # 80 columns are enough
        pad_edge=False,
    )
    out.add_column("\nnetwork", no_wrap=True)
    given = paper_columns(table)
    headings = [f"paper\n{column[:3]}-{column[3:]}" for column in given]
    for heading in ("\ntop-1", "\n95 %", "\ntop-5", *headings, "M\nparams", "M mult.-\nadds"):
        out.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        for regime in table.regimes:
            found = results[row.label, regime, CLEAN]
            out.add_row(
                row.label,
                Text(value(found.top1), style="bold"),
                Text(interval(found.top1), style="dim"),
                "-" if found.top5 is None else value(found.top5),
                *(figure(row.paper.get(column)) for column in given),
                f"{found.parameters / 1e6:.2f}",
                f"{found.multiply_adds / 1e6:.1f}",
            )
    return out


def counts(table: Table, number: int) -> RichTable:
    """The static columns: what networks cost at the paper's size, and what the paper says."""
    accuracy = paper_columns(table)
    out = RichTable(
        title=f"Table {number}: {table.title}",
        caption="One image of 224 x 224, 1000 classes. The paper counts operations by another rule, which gives about "
        "0.25 G more for ResNets and LR-Nets of bottlenecks: compare ours with ours.",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # 80 columns are enough
        pad_edge=False,
    )
    out.add_column("\nnetwork", no_wrap=True)
    for heading in ("M\nparams", "\npaper", "\n%", "G mult.-\nadds", "FLOPs,\npaper"):
        out.add_column(heading, justify="right", no_wrap=True)
    for column in accuracy:
        out.add_column(f"paper\n{column[:3]}-{column[3:]}", justify="right", no_wrap=True)
    for row in table.rows:
        found = row.profile()
        params = row.size.get("params")
        out.add_row(
            row.label,
            f"{found.parameters / 1e6:.1f}",
            figure(params),
            "-" if params is None else f"{100 * (found.parameters / 1e6 / params - 1):+.1f}",
            f"{found.multiply_adds / 1e9:.2f}",
            figure(row.size.get("flops")),
            *(figure(row.paper.get(column)) for column in accuracy),
        )
    return out


def paper_columns(table: Table) -> list[str]:
    """Which accuracies the paper gives for these rows."""
    return [column for column in ("top1", "top5") if any(column in row.paper for row in table.rows)]


def architectures(table: Table, number: int) -> RichTable:
    """The networks stage by stage."""
    out = RichTable(
        title=f"Table {number}: {table.title}",
        caption="One image of 224 x 224, 1000 classes.",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    out.add_column("network")
    out.add_column("stage")
    out.add_column("output", justify="right")
    out.add_column("layers")
    out.add_column("M params", justify="right")
    out.add_column("G mult.-adds", justify="right")
    for row in table.rows:
        stages = describe(**row.options)
        for stage in stages:
            out.add_row(
                row.label if stage is stages[0] else "",
                stage.name,
                str(stage.side),
                stage.layers,
                f"{stage.parameters / 1e6:.2f}",
                f"{stage.multiply_adds / 1e9:.3f}",
                end_section=stage is stages[-1],
            )
    return out


def news(result: Result | Accuracy) -> str:
    """A result in a line."""
    if isinstance(result, Result):
        return f"clean {result.clean}, robust {result.robust}"
    return f"top-1 {result.top1}" + ("" if result.top5 is None else f", top-5 {result.top5}")


def figure(number: float | None) -> Text:
    """A figure of the paper."""
    return Text("-" if number is None else f"{number:.1f}", style="italic")


def robustness(table: Table, number: int, results: Mapping[tuple[str, str, str], Result]) -> RichTable:
    """Accuracy on the true label under attack: ours, its interval, and the paper's figure."""
    first = next(iter(results.values()))
    names = [*table.protocols]
    out = RichTable(
        title=f"Table {number} on {first.data}, {first.n} test images: top-1 accuracy in %",
        caption=(
            f"{protocols.get_pgd(names[0]).values_in_words()}; last iterate. The paper's figures are on ImageNet."
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),  # 80 columns are enough
        pad_edge=False,
    )
    out.add_column("\nnetwork", no_wrap=True)
    for regime in reversed(table.regimes):
        for heading in ("clean", *(name.removeprefix("lrnet-") for name in names)):
            out.add_column(f"{regime[:3]}.\n{heading}", justify="right", no_wrap=True)
    for row in table.rows:
        cells = [
            cell(share, row.paper.get(("" if regime == "adversarial" else "regular-") + key))
            for regime in reversed(table.regimes)
            for key, share in shares(results, row.label, regime, names).items()
        ]
        names_of_lines = Text(f"{row.label}\n").append("95 %\n", style="dim").append("paper", style="italic")
        out.add_row(names_of_lines, *cells, end_section=True)
    return out


def shares(
    results: Mapping[tuple[str, str, str], Result], label: str, regime: str, names: list[str]
) -> dict[str, Proportion]:
    """The accuracies of a row's half, by column."""
    return {
        "clean": results[label, regime, names[0]].clean,
        **{name: results[label, regime, name].robust for name in names},
    }


def cell(share: Proportion, paper: float | None) -> Text:
    text = Text(f"{value(share)}\n", style="bold").append(interval(share), style="not bold dim")
    return text if paper is None else text.append(f"\n{paper:.1f}", style="not bold italic")
