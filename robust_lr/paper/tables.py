"""The paper's tables, read from TOML: each row is a network with its training, its size and the paper's results.

With ``seeds``, a table has several training runs of each network, which differ only in their seed.
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
from .stronger import read_check, read_stronger

REGIMES = ("regular", "adversarial")
PAPER = "Hu et al. 2019, Table {}, ImageNet, accuracy in percent"
KEYS = ("title", "seed", "seeds", "limit", "protocols", "stronger", "claims", "model", "data", "rows", *REGIMES)

#: columns of a table of clean accuracies
TOP_K = ("top1", "top5")

#: maximum number of training runs of each network
MAX_SEEDS = 100

#: results by (label, regime, seed, name of the attack); the name is "clean" in a table without attacks
Results = Mapping[tuple[str, str, int, str], Result | Accuracy]


@dataclass(frozen=True)
class TableRow:
    """A network of a table.

    Attributes:
        label: the paper's name of the network.
        model: arguments of ``build_model``, as trained.
        configs: training configs by regime.
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
        """Arguments of ``build_model`` at the paper's size: those of ``model`` except width, stem and the like."""
        size = [each.name for each in fields(Frame)]
        return {key: value for key, value in self.model.items() if key not in size}

    def profile(self) -> Profile:
        """Return the network's cost at the paper's size: full width, one image of 224 x 224, 1000 classes."""
        return paper_size(**self.options)


@dataclass(frozen=True)
class Table:
    """Networks to train, and protocols to evaluate them with.

    Attributes:
        title: subject of the table.
        rows: the networks.
        protocols: names of the paper's attacks; if empty, accuracy on clean images is measured.
        limit: number of test images; 0 for all.
        seeds: number of training runs of each network, with consecutive seeds.
        runs: number of training runs by regime, if lower than ``seeds``; 0 for all.
        checks: how thoroughly results of the paper's attacks are probed, as in ``evaluate``, by regime.
        rate_rules: how the learning rates were chosen, in words, by regime.
        stronger: further attacks, on the adversarially trained networks only.
        claims: claims of the paper that the table tests.
    """

    title: str
    rows: Sequence[TableRow]
    protocols: Sequence[str]
    limit: int = 0
    seeds: int = 1
    runs: Mapping[str, int] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    rate_rules: Mapping[str, str] = field(default_factory=dict)
    stronger: Sequence[Attack] = ()
    claims: Sequence[Claim] = ()

    @property
    def regimes(self) -> list[str]:
        """Training regimes, of "regular" and "adversarial"; empty for a table that only compares sizes."""
        return [*self.rows[0].configs]

    def seeds_of(self, row: TableRow, regime: str) -> list[int]:
        """Return the seeds of the training runs of a network in a regime."""
        first = row.configs[regime].seed
        return list(range(first, first + min(self.seeds, self.runs.get(regime) or self.seeds)))

    def attacks(self, regime: str, run: int) -> tuple[Attack, ...]:
        """Return the attacks on training run number ``run``, from 0."""
        check = self.checks.get(regime)
        paper = tuple(Attack(name, protocols.get(name), self.limit, check=check) for name in self.protocols)
        also = self.stronger if regime == "adversarial" else ()
        return paper + tuple(attack for attack in also if not attack.runs or run < attack.runs)


def read(name: str | Path, overrides: Sequence[str] = (), limit: int | None = None, seeds: int | None = None) -> Table:
    """Read a table from a TOML file: [[rows]], and sections shared by all rows or by one regime.

    A file can name another as its ``base`` and override its values; lists are replaced as a whole.

    Args:
        name: path of the file, or name of a config that ships with the package.
        overrides: ``section.key=value``, see ``config.training.load``.
        limit, seeds: values that replace those of the file.

    Raises:
        InputError: missing file, unknown key, wrong value.
    """
    table = with_base(read_toml(find(name)))
    set_values(table, overrides)
    check_keys(name, table)
    title = convert(str, table.pop("title", Path(name).stem), "title")
    file_limit, file_seeds = (convert(int, table.pop(key, value), key) for key, value in (("limit", 0), ("seeds", 1)))
    limit, seeds = file_limit if limit is None else limit, file_seeds if seeds is None else seeds
    stronger = read_stronger(table.pop("stronger", []))
    claims, rows = table.pop("claims", []), table.pop("rows")
    labels = read_labels(name, rows)
    names = read_protocols(table.pop("protocols", []))
    regimes = {regime: dict(check_mapping(table.pop(regime), regime)) for regime in REGIMES if regime in table}
    runs = {regime: convert(int, values.pop("runs", 0), f"{regime}.runs") for regime, values in regimes.items()}
    checks = {
        regime: read_check(values.pop("check"), f"[{regime}]")
        for regime, values in regimes.items()
        if "check" in values
    }
    rules = {
        regime: convert(str, values.pop("rate_rule", ""), f"{regime}.rate_rule") for regime, values in regimes.items()
    }
    if names and not regimes:
        raise InputError(f"{name}: networks must be trained before attacks: [regular] or [adversarial] is needed")
    for section in ("model", "data"):
        check_mapping(table.get(section, {}), section)
    check_at_least(0, limit=limit, **{f"{regime}.runs": number for regime, number in runs.items()})
    if not 1 <= seeds <= MAX_SEEDS:
        raise InputError(f"seeds = {seeds}: must be between 1 and {MAX_SEEDS}")
    if stronger and (not names or "adversarial" not in regimes):
        raise InputError(f"{name}: [[stronger]] attacks need `protocols` and an [adversarial] section")
    for attack in stronger:
        if attack.name in names:
            raise InputError(f"[[stronger]] name = {attack.name!r}: `protocols` already contains it; give another name")
    columns = [prefix + column for prefix in ("", "regular-") for column in ([CLEAN, *names] if names else TOP_K)]
    attacks = [CLEAN, *names, *(attack.name for attack in stronger)] if "adversarial" in regimes else []
    return Table(
        title=title,
        rows=[table_row(row, table, regimes, columns) for row in rows],
        protocols=names,
        limit=limit,
        seeds=seeds,
        runs=runs,
        checks=checks,
        rate_rules=rules,
        stronger=stronger,
        claims=read_claims(claims, labels, attacks),
    )


def check_keys(name: str | Path, table: Mapping[str, Any]) -> None:
    """Raise an InputError for a file without [[rows]], or with a key that tables do not have."""
    if "rows" not in table:
        raise InputError(f"{name}: a table needs [[rows]]; to train one network, use robust-lr adv-train")
    for key in table:
        if key in ("attack", *RECORDS) and key != "data":
            words = " or ".join(f"{regime}.{key}" for regime in REGIMES)
            raise InputError(f"{key}: a table has two training regimes; say for which: {words}")
        check_name("key of a table", key, KEYS)


def read_protocols(names: Any) -> list[str]:
    """Return the names of the paper's attacks; InputError unless they are different names of protocols."""
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise InputError(f"protocols = {names!r}: must be a list of names, none of them twice")
    for protocol in names:
        protocols.get(protocol)
    return names


def read_labels(name: str | Path, rows: Any) -> list[str]:
    """Return the labels of [[rows]]; InputError if there are no rows, or two labels give the same folder."""
    if not rows:
        raise InputError(f"{name}: a table needs [[rows]]")
    labels = [row_label(row) for row in (rows if isinstance(rows, list) else [rows])]
    slugs = [to_slug(label) for label in labels]
    for label, slug in zip(labels, slugs, strict=True):
        if slugs.count(slug) > 1:
            raise InputError(f"[[rows]] label = {label!r}: another row has the same folder {slug!r}; change the label")
    return labels


def with_base(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of ``table`` merged over those of the file that it names as its base."""
    values = dict(table)
    if (base := values.pop("base", None)) is None:
        return values
    below = read_toml(find(convert(str, base, "base")))
    if "base" in below:
        raise InputError(f"base = {base!r}: that file has a base itself; name a file that has none")
    return merge_tables(below, values)


def check_mapping(value: Any, name: str) -> Mapping[str, Any]:
    """Return ``value``; InputError unless it is a TOML table."""
    if not isinstance(value, Mapping):
        raise InputError(f"{name} = {value!r}: a [{name}] table is needed")
    return value


def row_label(row: Any) -> str:
    label: str = convert(str, check_mapping(row, "rows").get("label", 0), "[[rows]] label")
    return label


def table_row(
    row: Mapping[str, Any], shared: Mapping[str, Any], regimes: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> TableRow:
    """Read a row; its values override those of a regime, which override the shared ones."""
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
    """Return ``base`` updated with ``changes``; tables that occur in both are merged recursively."""
    both = {key: merge_tables(base[key], v) for key, v in changes.items() if isinstance(v, Mapping) and key in base}
    return {**base, **changes, **both}


def make_jobs(table: Table, folder: Path) -> list[Job]:
    """Return one job per training run, each with its own folder.

    Those that take longest come first, so that the processes end at about the same time: adversarial training before
    regular, and in each training run the networks by the paper's number of operations.
    """
    rows = sorted(table.rows, key=lambda row: row.size.get("flops", 0.0), reverse=True)
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
        for row in rows
        for seed in table.seeds_of(row, regime)[run : run + 1]
    ]


def to_slug(label: str) -> str:
    """Return the name of a row's folder: the label in lower case, with "-" for other characters."""
    return "".join(c if c.isalnum() else "-" for c in label.lower())


def to_dict(
    table: Table, number: int, results: Results, outcomes: Outcomes, verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """Return the content of ``tableN.json``: training runs, estimates over them, and the paper's accuracies (%)."""

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
    """Return for each row the parameters and multiply-adds at the paper's size, counted here and as the paper gives."""
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
