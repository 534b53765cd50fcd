"""The paper's tables: rows read from TOML, each a network with its training, its size and the paper's figures.

A table has several training runs of each network, if it asks for ``seeds``; they differ in their seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .. import protocols
from ..config.training import RECORDS, Config, find, from_dict, set_values
from ..config.training import to_dict as config_to_dict
from ..models.cost import Profile, paper_size
from ..models.resnet import Frame
from ..results.compare_groups import METHODS, estimate_to_dict
from ..results.result import Result
from ..utils.checks import check_at_least, check_name, convert
from ..utils.errors import InputError
from ..utils.toml import read_toml
from .claims import Claim, Outcomes, Verdict, read_claims
from .clean_accuracy import CLEAN, Accuracy
from .jobs import Attack, Job
from .stronger import read_stronger

REGIMES = ("regular", "adversarial")
PAPER = "Hu et al. 2019, Table {}, ImageNet, accuracy in percent"
KEYS = ("title", "seed", "seeds", "limit", "protocols", "stronger", "claims", "model", "data", "rows", *REGIMES)

#: most training runs of each network
MAX_SEEDS = 100

#: by (label, regime, seed, name of the attack); the name is "clean" in a table without attacks
Results = Mapping[tuple[str, str, int, str], Result | Accuracy]


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
        """Arguments of ``build_model`` at the paper's size: those that say what kind of network it is."""
        size = [each.name for each in fields(Frame)]
        return {key: value for key, value in self.model.items() if key not in size}

    def profile(self) -> Profile:
        """Count the network's cost at the paper's size: full width, one image of 224 x 224, 1000 classes."""
        return paper_size(**self.options)


@dataclass(frozen=True)
class Table:
    """Networks to train and protocols to judge them by.

    Attributes:
        title: what the rows vary.
        protocols: the paper's attacks; without any, accuracy on clean images is measured.
        limit: the number of test images, 0 for all.
        seeds: the number of training runs of each network, with consecutive seeds.
        runs: by regime, only so many of these; 0 for all.
        rate_rules: by regime, how the learning rates were chosen, in words.
        stronger: attacks beside the paper's, on adversarially trained networks.
        claims: statements of the paper that the table tests.
    """

    title: str
    rows: Sequence[TableRow]
    protocols: Sequence[str]
    limit: int = 0
    seeds: int = 1
    runs: Mapping[str, int] = field(default_factory=dict)
    rate_rules: Mapping[str, str] = field(default_factory=dict)
    stronger: Sequence[Attack] = ()
    claims: Sequence[Claim] = ()

    @property
    def regimes(self) -> list[str]:
        """Names of the ways in which the networks are trained; none where the table compares sizes alone."""
        return [*self.rows[0].configs]

    def seeds_of(self, row: TableRow, regime: str) -> list[int]:
        """Seeds of the training runs."""
        first = row.configs[regime].seed
        return list(range(first, first + min(self.seeds, self.runs.get(regime) or self.seeds)))

    def attacks(self, regime: str, run: int) -> tuple[Attack, ...]:
        """Attacks on the training run of this number, from 0."""
        paper = tuple(Attack(name, protocols.get(name), self.limit) for name in self.protocols)
        also = self.stronger if regime == "adversarial" else ()
        return paper + tuple(attack for attack in also if not attack.runs or run < attack.runs)


def read(name: str | Path, overrides: Sequence[str] = (), limit: int | None = None, seeds: int | None = None) -> Table:
    """Read the table of a TOML file: [[rows]], and sections that all rows or one regime share.

    A file may name another one as its ``base``, whose values it replaces; lists are replaced as a whole.

    Args:
        limit, seeds: instead of the file's.

    Raises:
        InputError: missing file, unknown key, wrong value.
    """
    table = with_base(read_toml(find(name)))
    set_values(table, overrides)
    if "rows" not in table:
        raise InputError(f"{name}: a table needs [[rows]]; one network is trained by robust-lr adv-train")
    for key in table:
        if key in ("attack", *RECORDS) and key != "data":
            words = " or ".join(f"{regime}.{key}" for regime in REGIMES)
            raise InputError(f"{key}: networks of a table are trained in two ways, say for which: {words}")
        check_name("key of a table", key, KEYS)
    title = convert(str, table.pop("title", Path(name).stem), "title")
    names, rows = table.pop("protocols", []), table.pop("rows", [])
    own_limit, own_seeds = (convert(int, table.pop(key, value), key) for key, value in (("limit", 0), ("seeds", 1)))
    limit, seeds = own_limit if limit is None else limit, own_seeds if seeds is None else seeds
    stronger = read_stronger(table.pop("stronger", []))
    claims = table.pop("claims", [])
    if not rows:
        raise InputError(f"{name}: a table needs [[rows]]")
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise InputError(f"protocols = {names!r}: a list of names is needed, none of them twice")
    for protocol in names:
        protocols.get(protocol)
    regimes = {regime: dict(check_mapping(table.pop(regime), regime)) for regime in REGIMES if regime in table}
    runs = {regime: convert(int, values.pop("runs", 0), f"{regime}.runs") for regime, values in regimes.items()}
    rules = {
        regime: convert(str, values.pop("rate_rule", ""), f"{regime}.rate_rule") for regime, values in regimes.items()
    }
    if names and not regimes:
        raise InputError(f"{name}: what is attacked must be trained: [regular] or [adversarial] is needed")
    for section in ("model", "data"):
        check_mapping(table.get(section, {}), section)
    measured = [CLEAN, *names] if names else ["top1", "top5"]
    columns = [prefix + column for prefix in ("", "regular-") for column in measured]
    labels = [row_label(row) for row in (rows if isinstance(rows, list) else [rows])]
    for label in labels:
        if [to_slug(other) for other in labels].count(to_slug(label)) > 1:
            raise InputError(
                f"[[rows]] label = {label!r}: another row's label gives the same folder {to_slug(label)!r}"
            )
    check_at_least(0, limit=limit, **{f"{regime}.runs": number for regime, number in runs.items()})
    if not 1 <= seeds <= MAX_SEEDS:
        raise InputError(f"seeds = {seeds}: the number of training runs is between 1 and {MAX_SEEDS}")
    if stronger and (not names or "adversarial" not in regimes):
        raise InputError(f"{name}: [[stronger]] attacks are for a table of attacks with an [adversarial] regime")
    for attack in stronger:
        if attack.name in names:
            raise InputError(f"[[stronger]] name = {attack.name!r}: the paper's protocols include it, give another")
    figures = [CLEAN, *names, *(attack.name for attack in stronger)]
    return Table(
        title,
        [table_row(row, table, regimes, columns) for row in rows],
        names,
        limit,
        seeds,
        runs,
        rules,
        stronger,
        read_claims(claims, labels, figures if "adversarial" in regimes else []),
    )


def with_base(table: Mapping[str, Any]) -> dict[str, Any]:
    """Put the values of a table over those of the file that it names as its base."""
    values = dict(table)
    if (base := values.pop("base", None)) is None:
        return values
    below = read_toml(find(convert(str, base, "base")))
    if "base" in below:
        raise InputError(f"base = {base!r}: that file has a base itself, name the one that has none")
    return merge_tables(below, values)


def check_mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} = {value!r}: a [{name}] table is needed")
    return value


def row_label(row: Any) -> str:
    label: str = convert(str, check_mapping(row, "rows").get("label", 0), "[[rows]] label")
    return label


def table_row(
    row: Mapping[str, Any], shared: Mapping[str, Any], regimes: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> TableRow:
    """Read a row, whose values replace those of a regime, which replace the shared ones."""
    for key in row:
        check_name("key of [[rows]]", key, ["label", "model", "paper", "size", *REGIMES])
    own = {regime: check_mapping(row.get(regime, {}), f"[[rows]] {regime}") for regime in REGIMES}
    model = check_mapping(row.get("model", {}), "model")
    figures = {"paper": columns, "size": ["params", "flops"]}
    for section, allowed in figures.items():
        for column in check_mapping(row.get(section, {}), section):
            check_name(f"column of [[rows]] {section}", column, allowed)
    paper, size = (
        {column: convert(float, figure, f"{section}.{column}") for column, figure in row.get(section, {}).items()}
        for section in figures
    )
    return TableRow(
        label=row["label"],
        model=from_dict(merge_tables(shared, {"model": model})).model,
        configs={
            regime: from_dict(merge_tables(merge_tables(merge_tables(shared, sections), {"model": model}), own[regime]))
            for regime, sections in regimes.items()
        },
        paper=paper,
        size=size,
    )


def merge_tables(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply ``changes`` to ``base``; tables that occur in both are merged."""
    both = {key: merge_tables(base[key], v) for key, v in changes.items() if isinstance(v, Mapping) and key in base}
    return {**base, **changes, **both}


def make_jobs(table: Table, folder: Path) -> list[Job]:
    """Return a job for every training run, with a folder of its own; adversarial ones first, as they take longest."""
    return [
        Job(
            row.label,
            regime,
            replace(row.configs[regime], seed=seed),
            table.attacks(regime, run),
            table.limit,
            folder / f"{to_slug(row.label)}-{regime}" / f"seed-{seed}",
        )
        for regime in reversed(table.regimes)
        for run in range(table.seeds)
        for row in table.rows
        for seed in table.seeds_of(row, regime)[run : run + 1]
    ]


def to_slug(label: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in label.lower())


def to_dict(
    table: Table, number: int, results: Results, outcomes: Outcomes, verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """Return ``tableN.json``: by row every training run, figures over the runs, and the paper's (percent)."""

    def ours(row: TableRow, regime: str) -> dict[str, Any]:
        names = [attack.name for attack in table.attacks(regime, 0)] or [CLEAN]
        return {
            name: {
                "runs": [
                    {"train_seed": seed, **results[row.label, regime, seed, name].to_dict()}
                    for seed in table.seeds_of(row, regime)
                    if (row.label, regime, seed, name) in results
                ],
                "over_runs": {
                    figure: estimate_to_dict(estimate)
                    for figure, estimate in outcomes.estimates(row.label, regime, name).items()
                },
            }
            for name in names
        }

    return {
        "schema": 2,
        "paper": PAPER.format(number),
        "seeds": table.seeds,
        "methods": METHODS,
        "rate_rules": {regime: rule for regime, rule in table.rate_rules.items() if rule},
        "claims": [verdict.to_dict() for verdict in verdicts],
        "rows": [
            {
                "label": row.label,
                "paper": dict(row.paper),
                "config": {regime: config_to_dict(config) for regime, config in row.configs.items()},
                "ours": {regime: ours(row, regime) for regime in table.regimes},
            }
            for row in table.rows
        ],
    }


def counts_to_dict(table: Table, number: int) -> dict[str, Any]:
    """Return the static columns by row: parameters and multiply-adds at the paper's size, and the paper's own."""
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
