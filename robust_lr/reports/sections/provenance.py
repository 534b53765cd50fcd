"""The section on how to repeat the evaluations: commands, protocols, versions, hashes."""

from __future__ import annotations

import shlex

from ...protocols.files import from_values, to_toml
from ...protocols.presets import PROTOCOLS
from ...utils.errors import InputError
from ..blocks import Block, Column, Listing, Section, Table, count_cell, text_cell
from ..collect import Found
from ..record import Report


def provenance(report: Report) -> Section:
    """Return the section with commands, custom protocols, versions and hashes."""
    commands = list(dict.fromkeys(command(found, report) for found in report.evaluations))
    blocks: list[Block] = [Listing(title="Commands", text="\n".join(commands))]
    blocks += [Listing(title=f"{name}.toml", text=text) for name, text in custom_protocols(report).items()]
    blocks += [hashes(report), versions(report)]
    return Section(
        key="repeat",
        title="To repeat this",
        text="The same weights, images, protocol, seed and versions on the same kind of device give the same rows; "
        "they are bit-identical if the evaluation does not depend on the batch size.",
        blocks=blocks,
    )


def command(found: Found, report: Report) -> str:
    """Return the recorded command of an evaluation, or else one composed from its result."""
    if found.record.get("command"):
        return str(found.record["command"])
    if found.sweep is not None:
        name = str(report.collection.curves[found.sweep]["sweep"])
        out = found.sweep
    else:
        name = str(found.protocol["name"])
        out = found.folder
        if is_custom(found):
            name = f"{name}.toml"
    words = ["robust-lr", "attack", "--protocol", name, "--seed", str(found.seed), "--data", str(found.record["data"])]
    return shlex.join([*words, "--checkpoint", f"WEIGHTS-OF-{found.model}", "--out", str(out)])


def is_custom(found: Found) -> bool:
    """Return True unless the protocol is a preset with unchanged values."""
    preset = PROTOCOLS.get(str(found.protocol["name"]))
    return preset is None or preset.values() != found.protocol


def custom_protocols(report: Report) -> dict[str, str]:
    """Return the protocols that are not presets as TOML, by name."""
    out: dict[str, str] = {}
    for found in report.evaluations:
        if found.sweep is None and is_custom(found):
            try:
                out.setdefault(str(found.protocol["name"]), to_toml(from_values(found.protocol)).strip())
            except InputError:  # the user's own attack
                continue
    return out


def hashes(report: Report) -> Table:
    """Return a table of the hashes of every evaluation."""
    rows = [
        [
            text_cell(report.labels[found.number]),
            text_cell(str(found.protocol["name"]), detail=report.data_label(found)),
            count_cell(found.seed),
            *(text_cell(str(found.record.get(f"{kind}_sha256", "-"))) for kind in ("weights", "images", "targets")),
            text_cell("yes" if found.record["batch_invariant"] else "no"),
            text_cell(str(found.record.get("date") or "-")),
            text_cell(found.folder.as_posix()),
        ]
        for found in report.evaluations
    ]
    names = ("model", "protocol", "seed", "weights", "images", "targets", "any batch size", "date", "folder")
    return Table(
        key="hashes",
        title="Hashes",
        note="SHA-256 of weights, images and targets; whether the results are the same for any batch size.",
        columns=[Column(name, figures=name == "seed") for name in names],
        rows=rows,
    )


def versions(report: Report) -> Table:
    """Return a table of the software versions and the commit, with one row for each different set."""
    found = list(
        dict.fromkeys(
            (*each.record["versions"].items(), ("commit", each.record.get("commit") or "-"))
            for each in report.evaluations
        )
    )
    names = list(dict.fromkeys(name for each in found for name, _ in each))
    return Table(
        key="versions",
        title="Versions",
        note="One row for each set of versions.",
        columns=[Column(name, figures=False) for name in names],
        rows=[[text_cell(str(dict(each).get(name, "-"))) for name in names] for each in found],
    )
