"""The section on paired comparisons of the models' robust accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from ...results.compare import Pair
from ..blocks import (
    Block,
    Cell,
    Column,
    Notice,
    Plot,
    Point,
    Section,
    Series,
    Table,
    count_cell,
    number_cell,
    text_cell,
)
from ..record import Group, Report
from .headline import count_images, is_attack

LEVEL = 0.05


def comparison(report: Report) -> Section | None:
    """Return the section on paired differences of robust accuracy; None if no models can be compared."""
    groups = [group for group in report.groups if group.pairs and is_attack(group)]
    if not groups:
        return None
    labels = list(dict.fromkeys(group.data for group in groups))
    first = min(group.seed for group in groups)
    blocks: list[Block] = [Notice(text=findings(group)) for group in groups if group.seed == first]
    blocks += [table([g for g in groups if g.data == data], number) for number, data in enumerate(labels, start=1)]
    blocks += [forest(group, number) for number, group in enumerate(groups, start=1)]
    return Section(
        key="pairs",
        title="Paired differences",
        text="Robust accuracy of the first model minus that of the second on the same images, starts and targets, in "
        "points, with Newcombe's 95 % interval for paired proportions (1998, method 10). p-values are those of "
        "McNemar's exact test, two-sided, corrected for the pairs of a protocol and seed (Holm 1979); they are "
        "withheld if the verdict on a model is misled.",
        blocks=blocks,
    )


def findings(group: Group) -> str:
    """Return the outcome of a group's tests in words."""
    found = [finding(pair) for pair in group.of("robust") if pair.p_holm < LEVEL and pair.difference]
    rest = len(group.of("robust")) - len(found)
    if not found:
        found = ["no difference in robust accuracy is significant"]
    elif rest:
        found.append(f"{rest} other difference{'s are' if rest > 1 else ' is'} not significant")
    return f"{group.name} on {group.data}, seed {group.seed}, n = {group.n:,}: {'; '.join(found)}."


def finding(pair: Pair) -> str:
    better, worse = (pair.first, pair.second) if pair.difference > 0 else (pair.second, pair.first)
    low, high = sorted(abs(bound) for bound in pair.interval)
    return (
        f"{better} is more robust than {worse}, by {100 * abs(pair.difference):.1f} points "
        f"[{100 * low:.1f}, {100 * high:.1f}], p = {p_value(pair.p_holm)}"
    )


def p_value(p: float) -> str:
    """Format a p-value; NaN, for a misled verdict, becomes "withheld"."""
    return "withheld" if isnan(p) else f"{p:.2g}"


def table(groups: Sequence[Group], number: int) -> Table:
    """Return a table of every pair under every attack on one data set."""
    rows = []
    for group, pair in ((each, pair) for each in groups for pair in each.of("robust")):
        low, high = pair.interval
        first, second = group.members[pair.first].number, group.members[pair.second].number
        significant = pair.p_holm < LEVEL
        rows.append(
            [
                text_cell(group.name, detail=f"seed {group.seed}"),
                text_cell(pair.first),
                text_cell(pair.second),
                Cell(
                    text=f"{100 * pair.difference:+.1f}",
                    detail=f"[{100 * low:+.1f}, {100 * high:+.1f}]",
                    sort=pair.difference,
                    strong=significant,
                ),
                count_cell(pair.only_first, f"{first}:only:{second}"),
                count_cell(pair.only_second, f"{second}:only:{first}"),
                number_cell(2.0 if isnan(pair.p) else pair.p, p_value(pair.p)),
                number_cell(2.0 if isnan(pair.p_holm) else pair.p_holm, p_value(pair.p_holm), strong=significant),
            ]
        )
    return Table(
        key=f"pairs-{number}",
        title=f"Differences of robust accuracy on {groups[0].data}",
        note=f"Denominator: {count_images(groups)} images. Bold: p < {LEVEL} after Holm's correction over the pairs of "
        "a protocol and seed.",
        columns=[
            Column("protocol", figures=False),
            Column("first", figures=False),
            Column("second", figures=False),
            Column("difference", "points"),
            Column("only first", "robust images"),
            Column("only second", "robust images"),
            Column("p", "McNemar"),
            Column("p", "Holm"),
        ],
        rows=rows,
    )


def forest(group: Group, number: int) -> Plot:
    """Return a forest plot of the differences and their intervals."""
    found = group.of("robust")
    points = [
        Point(pair.difference, float(at), *pair.interval, f"{pair.first} minus {pair.second}")
        for at, pair in enumerate(found)
    ]
    return Plot(
        key=f"forest-{number}",
        kind="forest",
        title=f"Differences under {group.name}",
        summary="; ".join(
            f"{pair.first} minus {pair.second}: {100 * pair.difference:+.1f} points, interval "
            f"{100 * pair.interval[0]:+.1f} to {100 * pair.interval[1]:+.1f}"
            for pair in found
        )
        + ".",
        x_label=f"difference in points; n = {group.n:,}",
        y_label="",
        series=[Series("difference", points)],
        ticks=[(float(at), f"{pair.first} \u2212 {pair.second}") for at, pair in enumerate(found)],
    )
