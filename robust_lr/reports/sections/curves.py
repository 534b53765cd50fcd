"""The section on curves: robust accuracy over eps and steps, survival during the attack, and margins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from math import log2, log10
from typing import Any

from ...results.ledger import Row
from ...utils.statistics import Proportion
from ..blocks import Block, Cell, Column, Plot, Point, Section, Series, Table, share_cell, text_cell
from ..collect import Found
from ..record import Group, Report
from .headline import is_attack

SEEN, LAST = "robust_accuracy_worst_seen", "robust_accuracy_last"
FIGURES = {SEEN: "worst seen", LAST: "last iterate"}

#: number of quantiles drawn of a distribution
QUANTILES = 60

#: kind of axis -> functions that place and label a value, and the axis label
AXES: dict[str, tuple[Callable[[float], float], Callable[[float], str], str]] = {
    "eps": (lambda eps: log2(1 + 255 * eps), lambda eps: f"{255 * eps:.4g}", "eps in 1/255, logarithmic"),
    "steps": (lambda steps: log10(max(steps, 1)), lambda steps: f"{steps:g}", "steps, logarithmic"),
}

Points = Sequence[Mapping[str, Any]]
Key = tuple[str, str, str, int]


def curves(report: Report) -> Section | None:
    """Return the section with every curve; None if there are none."""
    blocks: list[Block] = []
    for number, ((axis, name, data, seed), members) in enumerate(trajectories(report).items(), start=1):
        blocks += curve(axis, f"{name} on {data}, seed {seed}", members, number)
    shown: set[tuple[str, str]] = set()
    for number, group in enumerate(report.groups, start=1):
        if not is_attack(group) or (group.data, group.name) in shown:
            continue
        shown.add((group.data, group.name))
        blocks += survival(group, number)
        blocks += margins(group, number)
    if not blocks:
        return None
    return Section(
        key="curves",
        title="Curves",
        text="Shares of all images with bands of 95 % Wilson intervals. In worst seen, an image that was broken at a "
        "smaller eps or an earlier step stays broken. Survival is the share of images that were right when clean and "
        "have not been misclassified so far. The margin is the logit of the true class minus the largest other logit, "
        "at its smallest during the attack; its scale depends on the model, so compare only signs between models.",
        blocks=blocks,
    )


def trajectories(report: Report) -> dict[Key, dict[str, tuple[Points, Found]]]:
    """Return the points of sweeps and of recorded steps, by (axis, name, images, seed) and model."""
    out: dict[Key, dict[str, tuple[Points, Found]]] = {}
    for folder, members in report.sweeps.items():
        record = report.collection.curves[folder]
        last = members[-1]
        key = record["axis"], record["sweep"], report.data_label(last), last.seed
        out.setdefault(key, {})[report.labels[last.number]] = record["points"], last
    for group in report.groups:
        for model, found in group.members.items():
            if found.record.get("curve"):
                out.setdefault(("steps", group.name, group.data, group.seed), {})[model] = found.record["curve"], found
    return out


def curve(axis: str, title: str, members: Mapping[str, tuple[Points, Found]], number: int) -> list[Block]:
    """Return plots of the accuracies, without the last iterate if it differs little, and a table of all of them."""
    place, label, axis_label = AXES[axis]
    figures = [key for key in FIGURES if all(key in point for points, _ in members.values() for point in points)]
    if LAST in figures and not any(
        abs(point[LAST] - point[SEEN]) > 0.02 for points, _ in members.values() for point in points
    ):
        figures.remove(LAST)
    values = sorted({float(point[axis]) for points, _ in members.values() for point in points})
    n = next(iter(members.values()))[0][0]["denominators"][SEEN]
    out: list[Block] = []
    for key in figures:
        series = [
            Series(
                model,
                [
                    Point(
                        place(point[axis]),
                        point[key],
                        point["intervals"][key][0],
                        point["intervals"][key][1],
                        f"{model}, {axis} {label(point[axis])}: {proportion(point, key)}",
                    )
                    for point in points
                ],
            )
            for model, (points, _) in members.items()
        ]
        out.append(
            Plot(
                key=f"curve-{number}-{FIGURES[key].replace(' ', '-')}",
                kind="lines",
                title=f"{title}: {FIGURES[key]}",
                summary=f"Robust accuracy ({FIGURES[key]}) by {axis}. "
                + " ".join(
                    f"{line.name} goes from {100 * line.points[0].y:.1f} % to {100 * line.points[-1].y:.1f} %."
                    for line in series
                ),
                x_label=f"{axis_label}; n = {n:,}",
                y_label="robust accuracy",
                series=series,
                ticks=[(place(value), label(value)) for value in values],
            )
        )
    return [*out, curve_table(axis, title, members, number)]


def proportion(point: Mapping[str, Any], key: str) -> Proportion:
    n = int(point["denominators"][key])
    return Proportion(round(point[key] * n), n)


def curve_table(axis: str, title: str, members: Mapping[str, tuple[Points, Found]], number: int) -> Table:
    _, label, _ = AXES[axis]
    figures = [key for key in FIGURES if any(key in point for points, _ in members.values() for point in points)]
    rows = [
        [
            text_cell(model),
            Cell(text=label(point[axis]), sort=float(point[axis])),
            *(share_cell(proportion(point, key)) if key in point else share_cell(None) for key in figures),
            Cell(text=f"{point['denominators'][SEEN]:,}", sort=float(point["denominators"][SEEN])),
        ]
        for model, (points, _) in members.items()
        for point in points
    ]
    columns = [
        Column("model", figures=False),
        Column("eps, 1/255" if axis == "eps" else axis),
        *(Column(FIGURES[key], "of all images") for key in figures),
        Column("n", "images"),
    ]
    return Table(
        key=f"curve-{number}",
        title=title,
        note="Robust accuracy in % with 95 % Wilson intervals.",
        columns=columns,
        rows=rows,
        folded=True,
    )


def survival(group: Group, number: int) -> list[Block]:
    """Return a plot of the share of images that are still right by step; nothing without a single trajectory."""
    steps = int(group.protocol.get("steps", 0))
    leaves_early = group.protocol.get("targeted") and group.protocol.get("criterion") == "worst"
    if steps < 2 or "parts" in group.protocol or leaves_early or not group.protocol.get("step_size"):
        return []
    series = []
    for model, found in group.members.items():
        rows = found.evaluation.rows
        fallen = sorted(step for row in rows if (step := first_mistake(row)) is not None)
        points = []
        for step in shown_steps(fallen, steps):
            share = Proportion(len(rows) - bisect_right(fallen, step), len(rows))
            points.append(Point(float(step), share.value or 0.0, *share.interval, f"{model}, step {step}: {share}"))
        series.append(Series(model, points))
    return [
        Plot(
            key=f"survival-{number}",
            kind="steps",
            title=f"Survival under {group.name}",
            summary=f"Share of {group.n:,} images that have not been misclassified, by attack step. "
            + " ".join(
                f"{line.name}: {100 * line.points[0].y:.1f} % at the start, {100 * line.points[-1].y:.1f} % at the end."
                for line in series
            ),
            x_label=f"attack step; n = {group.n:,}",
            y_label="still right",
            series=series,
            ticks=[(float(step), f"{step}") for step in round_steps(steps)],
        )
    ]


def first_mistake(row: Row) -> int | None:
    """Return the step at which an image was first misclassified; 0 for the clean image, None for never."""
    return 0 if row.clean != row.label else row.first_wrong


def shown_steps(fallen: Sequence[int], steps: int) -> list[int]:
    """Return the steps at which an image is first misclassified, the first and the last step; at most 200."""
    changes = sorted({0, steps, *(step for step in fallen if step <= steps)})
    if len(changes) <= 200:
        return changes
    return [changes[round(place * (len(changes) - 1) / 199)] for place in range(200)]


def round_steps(steps: int) -> list[int]:
    """Return about five round values from 0 to ``steps``."""
    size = 10 ** max(0, len(str(steps // 5)) - 1)
    gap = next(size * factor for factor in (1, 2, 5, 10) if steps / (size * factor) <= 6)
    return list(range(0, steps + 1, gap))


def margins(group: Group, number: int) -> list[Block]:
    """Return a plot of the distribution of the smallest margins."""
    series = []
    for model, found in group.members.items():
        values = sorted(row.margin for row in found.evaluation.rows)
        share = Proportion(sum(value <= 0 for value in values), len(values))
        places = sorted({round(at * (len(values) - 1) / QUANTILES) for at in range(QUANTILES + 1)})
        points = []
        for at in places:
            below = (at + 1) / len(values)
            points.append(
                Point(values[at], below, below, below, f"{model}: {100 * below:.0f} % at most {values[at]:.2f}")
            )
        series.append((Series(model, points), share))
    return [
        Plot(
            key=f"margins-{number}",
            kind="smooth",
            title=f"Margins under {group.name}",
            summary=f"Cumulative share of {group.n:,} images by the smallest margin found. "
            + " ".join(f"{line.name}: {share} % at or below zero." for line, share in series),
            x_label=f"smallest margin in logits; n = {group.n:,}",
            y_label="share of images",
            series=[line for line, _ in series],
        )
    ]
