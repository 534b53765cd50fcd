"""The section on robust accuracy by class and the most frequent confusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...results.ledger import Row
from ...utils.statistics import Proportion
from ..blocks import Block, Cell, Column, Plot, Point, Section, Series, Table, count_cell, share_cell, text_cell
from ..record import Group, Report
from .headline import is_attack

#: maximum number of classes in a plot (the least robust ones), and of confusions in a table
MAX_CLASSES, MAX_PAIRS = 20, 8


def classes(report: Report) -> Section | None:
    """Return the section on robust accuracy by class and the most frequent confusions under each attack."""
    blocks: list[Block] = []
    shown: set[tuple[str, str]] = set()
    for number, group in enumerate(report.groups, start=1):
        if is_attack(group) and (group.data, group.name) not in shown:
            shown.add((group.data, group.name))
            blocks += [*by_class(group, number), confusions(group, number)]
    if not blocks:
        return None
    return Section(
        key="classes",
        title="Classes",
        text="Robust accuracy of each true class, and the classes that broken images are predicted as. Classes are "
        "numbered as in the data set.",
        blocks=blocks,
    )


def by_class(group: Group, number: int) -> list[Block]:
    members = {model: (found.number, shares(found.evaluation.rows)) for model, found in group.members.items()}
    known = sorted(set().union(*(found for _, found in members.values())))
    nothing = Proportion(0, 0)

    def average(label: int) -> float:
        return sum(found.get(label, nothing).value or 0.0 for _, found in members.values())

    drawn = sorted(known, key=average)[:MAX_CLASSES]
    drawn = sorted(drawn)
    series = [
        Series(
            model,
            [
                Point(share.value or 0.0, float(at), *share.interval, f"{model}, class {label}: {share}")
                for at, label in enumerate(drawn)
                if (share := found.get(label)) is not None
            ],
        )
        for model, (_, found) in members.items()
    ]
    rows = [
        [
            Cell(text=f"class {label}", sort=float(label)),
            count_cell(max(found[label].n for _, found in members.values() if label in found)),
            *(share_cell(found.get(label), f"{at}:class:{label}") for at, found in members.values()),
        ]
        for label in known
    ]
    fewer = f"; the {MAX_CLASSES} lowest of {len(known)}" if len(known) > len(drawn) else ""
    return [
        Plot(
            key=f"classes-{number}",
            kind="dots",
            title=f"Classes under {group.name}{fewer}",
            summary="Robust accuracy by true class. "
            + " ".join(f"{line.name}: {extremes(line, drawn)}." for line in series),
            x_label="robust accuracy within a class",
            y_label="",
            series=series,
            ticks=[(float(at), f"class {label}") for at, label in enumerate(drawn)],
        ),
        Table(
            key=f"classes-{number}",
            title=f"Classes under {group.name} on {group.data}",
            note="Robust accuracy in % with 95 % Wilson intervals; the denominator is the number of images of a class.",
            columns=[
                Column("true class", figures=False),
                Column("n", "images"),
                *(Column(model, "robust") for model in members),
            ],
            rows=rows,
            folded=True,
        ),
    ]


def shares(rows: Sequence[Row]) -> dict[int, Proportion]:
    """Return the robust accuracy by true class."""
    total, right = Counter(row.label for row in rows), Counter(row.label for row in rows if row.robust)
    return {label: Proportion(right[label], count) for label, count in total.items()}


def extremes(line: Series, drawn: Sequence[int]) -> str:
    low, high = min(line.points, key=lambda point: point.x), max(line.points, key=lambda point: point.x)
    return (
        f"lowest {100 * low.x:.1f} % for class {drawn[int(low.y)]}, highest {100 * high.x:.1f} % for class "
        f"{drawn[int(high.y)]}"
    )


def confusions(group: Group, number: int) -> Table:
    """Return a table of the pairs of classes that are confused most often under attack."""
    rows = []
    for model, found in group.members.items():
        images = found.evaluation.rows
        total = Counter(row.label for row in images)
        pairs = Counter((row.label, row.adversarial) for row in images if row.adversarial != row.label)
        for (label, other), count in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_PAIRS]:
            rows.append(
                [
                    text_cell(model),
                    Cell(text=f"class {label}", sort=float(label)),
                    Cell(text=f"class {other}", sort=float(other)),
                    count_cell(count, f"{found.number}:pair:{label}:{other}"),
                    share_cell(Proportion(count, total[label])),
                    count_cell(total[label]),
                ]
            )
    return Table(
        key=f"confusions-{number}",
        title=f"Confusions under {group.name} on {group.data}",
        note=f"The {MAX_PAIRS} most frequent of each model; the share is of the images of the true class, in %.",
        columns=[
            Column("model", figures=False),
            Column("true class", figures=False),
            Column("predicted", figures=False),
            Column("images"),
            Column("share", "of the class"),
            Column("n", "of the class"),
        ],
        rows=rows,
        folded=True,
    )
