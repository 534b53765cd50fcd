"""The sections with the main table, models by protocols, and with the details of every evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

from ...protocols.base import format_distance
from ...results.verdict import MISLED, SOUND, WEAK
from ..blocks import Block, Cell, Column, Notice, Section, Table, count_cell, share_cell, text_cell
from ..collect import Found
from ..record import Group, Report, ball, winners
from .validity import verdict

CRITERIA = {"last": "last iterate", "worst": "worst seen"}


def headline(report: Report) -> Section | None:
    """Return the section with one table per data set: a row for each model, a column for each protocol."""
    if not report.groups:
        return None
    labels = list(dict.fromkeys(group.data for group in report.groups))
    tables = [table(report, label, number) for number, label in enumerate(labels, start=1)]
    return Section(
        key="headline",
        title="Robust accuracy",
        text="Share of images whose true label the model still predicts, in %, with 95 % Wilson intervals. Bold: "
        "better than every other model in McNemar's exact test on the same images, p < 0.05 after Holm's correction.",
        blocks=[*notices(report), *tables],
    )


def notices(report: Report) -> list[Block]:
    """Return the warnings that must precede all results."""
    out: list[Block] = []
    for folder, done, total in report.collection.unfinished:
        out.append(Notice(text=f"{folder} is left out: {done:,} of {total:,} images are done.", tone="bad"))
    doubtful = [found for found in report.evaluations if verdict(found.record).tone == "bad"]
    if doubtful:
        out.append(
            Notice(
                text=f"{len(doubtful)} of {len(report.evaluations)} evaluations failed a validity check and may "
                "overestimate robust accuracy. See Validity.",
                tone="bad",
            )
        )
    for group in report.groups:
        if group.apart is not None:
            out.append(Notice(text=f"Not compared in pairs: {group.apart}."))
    return list(dict.fromkeys(out))


def table(report: Report, data: str, number: int) -> Table:
    """Return the table of models by protocols on one data set."""
    groups = [group for group in report.groups if group.data == data]
    names = list(dict.fromkeys(group.name for group in groups if is_attack(group)))
    models = list(dict.fromkeys(model for group in groups for model in group.members))
    first = next(iter(groups[0].members.values()))
    words = {group.name: heading(group) for group in groups}
    seeds = sorted({group.seed for group in groups})
    n = count_images(groups)
    note = f"Denominator: {n} images. Precision of the attacks: {first.record['precision']}. " + "; ".join(
        dict.fromkeys(f"{group.name}: {group.words}" for group in groups if is_attack(group))
    )
    if len(seeds) > 1:
        note += f". Mean and standard deviation over up to {len(seeds)} seeds"
    return Table(
        key=f"headline-{number}",
        title=data,
        note=f"{note}.",
        columns=[Column("model", figures=False), Column("clean", "no attack"), *(Column(n, words[n]) for n in names)],
        rows=[
            [text_cell(model), figure(groups, model, None), *(figure(groups, model, name) for name in names)]
            for model in models
        ],
    )


def count_images(groups: Sequence[Group]) -> str:
    """Return the number of images in words, or the numbers if the groups differ."""
    return " or ".join(f"{n:,}" for n in sorted({group.n for group in groups}))


def is_attack(group: Group) -> bool:
    """Return True if the group's protocol attacks images, False if it evaluates clean ones."""
    return bool(group.protocol.get("steps", 1)) and bool(group.protocol.get("eps", 1))


def heading(group: Group) -> str:
    """Return the radius of the ball and the criterion of a protocol in words."""
    parts = ball(group.protocol), CRITERIA.get(str(group.protocol.get("criterion")), "")
    return ", ".join(part for part in parts if part)


def figure(groups: Sequence[Group], model: str, protocol: str | None) -> Cell:
    """Return a cell with a model's accuracy under ``protocol`` (None: clean); mean and deviation for several seeds."""
    name = "clean" if protocol is None else "robust"
    among = [group for group in groups if model in group.members and protocol in (None, group.name)]
    if not among:
        return share_cell(None)
    shares: dict[Any, tuple[Group, Found]] = {}
    for group in among:
        found = group.members[model]
        key = found.record["weights_sha256"] if protocol is None else (found.seed, found.record["weights_sha256"])
        shares.setdefault(key, (group, found))
    chosen = list(shares.values())
    if len(chosen) == 1:
        group, found = chosen[0]
        best = model in winners(group, name)
        cell = share_cell(found.shares[name], f"{found.number}:{name}", strong=best)
        return cell if protocol is None else with_verdicts(cell, [found])
    values = [100 * (found.shares[name].value or 0.0) for _, found in chosen]
    cell = Cell(
        text=f"{mean(values):.1f}",
        detail=f"± {stdev(values):.1f}, {len(values)} seeds",
        sort=mean(values) / 100,
        rows=f"{chosen[0][1].number}:{name}",
    )
    return cell if protocol is None else with_verdicts(cell, [found for _, found in chosen])


def with_verdicts(cell: Cell, among: Sequence[Found]) -> Cell:
    """Add the verdicts of the evaluations behind a cell, the worst last; the tone is bad unless all are sound."""
    said = [str(found.record["verdict"]) for found in among if found.record.get("verdict")]
    counts = [(name, said.count(name)) for name in (SOUND, WEAK, MISLED) if name in said]
    if not counts:
        return cell
    words = ", ".join(name if len(said) == 1 else f"{count} {name}" for name, count in counts)
    return replace(cell, detail=f"{cell.detail}, {words}", tone="" if counts[-1][0] == SOUND else "bad")


def details(report: Report) -> Section | None:
    """Return the section with one row per evaluation: every accuracy, success and the verdict."""
    if not report.groups:
        return None
    rows = []
    for group in report.groups:
        for model, found in group.members.items():
            number, eps = found.number, float(group.protocol.get("eps", 0.0))
            rows.append(
                [
                    text_cell(model),
                    text_cell(group.name, detail=group.data),
                    Cell(text=format_distance(eps, str(group.protocol.get("norm", "linf"))), sort=eps),
                    count_cell(group.seed),
                    share_cell(found.shares["clean"], f"{number}:clean"),
                    share_cell(found.shares["robust"], f"{number}:robust"),
                    share_cell(found.shares["worst-seen"], f"{number}:worst"),
                    share_cell(found.shares["success"], f"{number}:success"),
                    count_cell(len(found.evaluation.rows), f"{number}:all"),
                    text_cell(verdict(found.record).text, tone=verdict(found.record).tone),
                ]
            )
    columns = [
        *(Column(name, figures=False) for name in ("model", "protocol")),
        Column("eps"),
        Column("seed"),
        Column("clean", "of all images"),
        Column("robust", "of all, by criterion"),
        Column("worst seen", "of all images"),
        Column("success", "of eligible images"),
        Column("n", "images"),
        Column("verdict", figures=False),
    ]
    return Section(
        key="details",
        title="Every evaluation",
        text="Robust accuracy follows the protocol's criterion; worst seen also counts mistakes at earlier iterates "
        "and on the clean image. Success of a targeted attack is the share of images predicted as the target, among "
        "those not so predicted when clean; of an untargeted attack, the share misclassified among those right when "
        "clean.",
        blocks=[
            Table(
                key="details",
                title="All evaluations",
                note="Accuracies and success in % with 95 % Wilson intervals; each number opens its rows.",
                columns=columns,
                rows=rows,
            )
        ],
    )
