"""The paper's tables: rows read from TOML, each a network with its training, its size and the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .. import protocols
from ..config.training import RECORDS, Config, find, from_dict, set_values
from ..config.training import to_dict as config_to_dict
from ..models.cost import Profile, paper_size
from ..models.resnet import Frame
from ..results.result import Result
from ..utils.checks import at_least, check_name, typed
from ..utils.errors import InputError
from ..utils.toml import read_toml
from .clean_accuracy import CLEAN, Accuracy
from .jobs import Job

REGIMES = ("regular", "adversarial")
PAPER = "Hu et al. 2019, Table {}, ImageNet, accuracy in percent"

#: by (label, regime, protocol), or (label, regime, "clean") in a table without attacks
Results = Mapping[tuple[str, str, str], Result | Accuracy]


@dataclass(frozen=True)
class TableRow:
    """A network of a table.

    Attributes:
        label: what the paper calls it.
        model: arguments of ``build_model`` as trained.
        configs: of its training, by regime.
        paper: the paper's accuracies on ImageNet in percent, by column.
        size: the paper's millions of parameters, ``params``, and billions of operations, ``flops``.
    """

    label: str
    model: Mapping[str, Any]
    configs: Mapping[str, Config]
    paper: Mapping[str, float]
    size: Mapping[str, float]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``build_model`` for the paper's size: those that say what kind of network it is."""
        size = [field.name for field in fields(Frame)]
        return {key: value for key, value in self.model.items() if key not in size}

    def profile(self) -> Profile:
        """What the network costs at the paper's size: full width, one image of 224 x 224, 1000 classes."""
        return paper_size(**self.options)


@dataclass(frozen=True)
class Table:
    """What to train and how to judge it.

    Attributes:
        title: what the rows vary.
        protocols: attacks; without any, accuracy on clean images is measured.
        limit: the number of test images, 0 for all.
    """

    title: str
    rows: Sequence[TableRow]
    protocols: Sequence[str]
    limit: int = 0

    @property
    def regimes(self) -> list[str]:
        """How the networks are trained; nothing where the table compares sizes alone."""
        return [*self.rows[0].configs]


def read(name: str | Path, overrides: Sequence[str] = (), limit: int = 0) -> Table:
    """The table of a TOML file: [[rows]], and sections that all rows or one regime share.

    Raises:
        InputError: missing file, unknown key, wrong value.
    """
    table = read_toml(find(name))
    set_values(table, overrides)
    if "rows" not in table:
        raise InputError(f"{name}: a table needs [[rows]]; one network is trained by robust-lr adv-train")
    for key in table:
        if key in ("attack", *RECORDS) and key != "data":
            words = " or ".join(f"{regime}.{key}" for regime in REGIMES)
            raise InputError(f"{key}: networks of a table are trained in two ways, say for which: {words}")
        check_name("key of a table", key, ["title", "seed", "protocols", "model", "data", "rows", *REGIMES])
    title = typed(str, table.pop("title", Path(name).stem), "title")
    names, rows = table.pop("protocols", []), table.pop("rows", [])
    if not rows:
        raise InputError(f"{name}: a table needs [[rows]]")
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise InputError(f"protocols = {names!r}: a list of names is needed, none of them twice")
    for protocol in names:
        protocols.get(protocol)
    regimes = {regime: mapping(table.pop(regime), regime) for regime in REGIMES if regime in table}
    if names and not regimes:
        raise InputError(f"{name}: what is attacked must be trained: [regular] or [adversarial] is needed")
    for section in ("model", "data"):
        mapping(table.get(section, {}), section)
    measured = [CLEAN, *names] if names else ["top1", "top5"]
    columns = [prefix + column for prefix in ("", "regular-") for column in measured]
    labels = [row_label(row) for row in (rows if isinstance(rows, list) else [rows])]
    for label in labels:
        if [slug(other) for other in labels].count(slug(label)) > 1:
            raise InputError(f"[[rows]] label = {label!r}: another row's label gives the same folder {slug(label)!r}")
    at_least(0, limit=limit)
    return Table(title, [table_row(row, table, regimes, columns) for row in rows], names, limit)


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} = {value!r}: a [{name}] table is needed")
    return value


def row_label(row: Any) -> str:
    label: str = typed(str, mapping(row, "rows").get("label", 0), "[[rows]] label")
    return label


def table_row(
    row: Mapping[str, Any], shared: Mapping[str, Any], regimes: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> TableRow:
    """A row, whose model values come before those of a regime, and these before the shared ones."""
    for key in row:
        check_name("key of [[rows]]", key, ["label", "model", "paper", "size"])
    model = mapping(row.get("model", {}), "model")
    figures = {"paper": columns, "size": ["params", "flops"]}
    for section, allowed in figures.items():
        for column in mapping(row.get(section, {}), section):
            check_name(f"column of [[rows]] {section}", column, allowed)
    paper, size = (
        {column: typed(float, figure, f"{section}.{column}") for column, figure in row.get(section, {}).items()}
        for section in figures
    )
    return TableRow(
        label=row["label"],
        model=from_dict(merged(shared, {"model": model})).model,
        configs={regime: from_dict(merged(merged(shared, own), {"model": model})) for regime, own in regimes.items()},
        paper=paper,
        size=size,
    )


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``; where both hold a table, the two are merged."""
    both = {key: merged(base[key], v) for key, v in changes.items() if isinstance(v, Mapping) and key in base}
    return {**base, **changes, **both}


def jobs(table: Table, folder: Path) -> list[Job]:
    """Every network under every regime; the adversarial ones first, because they take longest."""
    return [
        Job(
            row.label, regime, row.configs[regime], table.protocols, table.limit, folder / f"{slug(row.label)}-{regime}"
        )
        for regime in reversed(table.regimes)
        for row in table.rows
    ]


def slug(label: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in label.lower())


def to_dict(table: Table, number: int, results: Results) -> dict[str, Any]:
    """``tableN.json``: ours in full and the paper's figures (percent), by row."""
    return {
        "schema": 1,
        "paper": PAPER.format(number),
        "rows": [
            {
                "label": row.label,
                "paper": dict(row.paper),
                "config": {regime: config_to_dict(config) for regime, config in row.configs.items()},
                "ours": {
                    regime: {name: results[row.label, regime, name].to_dict() for name in table.protocols or [CLEAN]}
                    for regime in table.regimes
                },
            }
            for row in table.rows
        ],
    }


def counts_to_dict(table: Table, number: int) -> dict[str, Any]:
    """The static columns: parameters and multiply-adds at the paper's size, and the paper's own, by row."""
    return {
        "schema": 1,
        "paper": PAPER.format(number),
        "input": [3, 224, 224],
        "rows": [
            {
                "label": row.label,
                "model": row.options,
                "paper": {**row.paper, **row.size},
                "ours": {"parameters": found.parameters, "multiply_adds": found.multiply_adds},
            }
            for row in table.rows
            for found in [row.profile()]
        ],
    }
