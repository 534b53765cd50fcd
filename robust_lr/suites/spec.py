"""The specification of a suite, read from TOML. Unknown keys are errors, and names are checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config.training import load
from ..protocols import SWEEPS, Sweep
from ..protocols.base import Protocol, parse_distance
from ..protocols.files import from_table as read_protocol
from ..protocols.files import load_protocol
from ..utils.checks import build_record, check_at_least
from ..utils.errors import InputError
from ..utils.toml import read_toml

SHIPPED = Path(__file__).parent / "shipped"

#: folders of a suite besides those of its data sets: the networks that it trains, and transfer matrices
MODELS, TRANSFER = "models", "transfer"
RESERVED = (MODELS, TRANSFER)

Attack = Protocol | Sweep


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: a checkpoint, an external model, a network that the suite trains, or by default the shipped network.

    Attributes:
        checkpoint: run folder or weights file.
        source, weights, preset, mean, std, options: external model, as in ``models.external.load_source``.
        config, set: config of `adv-train` and overrides; the network is trained once for each seed of the suite.
    """

    checkpoint: str = ""
    source: str = ""
    weights: str = ""
    preset: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    config: str = ""
    set: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_trained(self) -> bool:
        """True if the suite trains this network."""
        return bool(self.config)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The test images of a data set.

    Attributes:
        name: name of the data set; by default the key of its table.
        root: folder of its files.
        limit: number of images, evenly spaced; 0 for all.
    """

    name: str = ""
    root: str = ""
    limit: int = 0


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Models, data sets, attacks and seeds that are evaluated in every combination.

    Attributes:
        name: name of the suite and of its folder below ``runs``.
        models, data: models and data sets by name; results and folders have these names.
        attacks: protocols and sweeps.
        seeds: seeds of starts and targets, and of the training of networks.
        precision: arithmetic of the attacks, see ``evaluate``.
        allow: names of guards that do not stop the evaluation.
        images: save adversarial images, and evaluate those of each model on every other model (transfer).
        tables: configs of the paper's tables to train and evaluate, as `robust-lr table` does.
    """

    name: str
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    data: Mapping[str, DataSpec] = field(default_factory=dict)
    attacks: tuple[Attack, ...] = ()
    seeds: tuple[int, ...] = (0,)
    precision: str = "fp32"
    allow: tuple[str, ...] = ()
    images: bool = False
    tables: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.tables and not (self.models and self.data and self.attacks):
            raise InputError(f"suite {self.name!r}: give [models.NAME], [data.NAME] and protocols, or tables")
        for kind, names in (("model", self.models), ("data set", self.data)):
            for name in names:
                if name in ("", ".", "..") or "/" in name or "\\" in name:
                    raise InputError(f"{kind} {name!r}: the name becomes a folder: choose one without slashes")
        for name in RESERVED:
            if name in self.data:
                raise InputError(f"data set {name!r}: the suite needs a folder of that name; choose another name")
        for table in self.tables:
            table_number(table)
        given = [attack.name for attack in self.attacks]
        for name in given:
            if given.count(name) > 1:
                raise InputError(f"protocol {name!r} is given twice: give each changed protocol another `name`")
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise InputError(f"seeds = {list(self.seeds)}: give at least one seed, and none twice")
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise InputError(f"seeds = {list(self.seeds)}: each must be between 0 and 2^32 - 1")


def table_number(config: str) -> int:
    """Return the number of a paper's table from the name of its config."""
    digits = "".join(filter(str.isdigit, Path(config).stem))
    if digits not in tuple("3456789"):
        raise InputError(f"tables: the name of {config!r} must contain a number from 3 to 9, e.g. table9")
    return int(digits)


def shipped() -> dict[str, Path]:
    """Return the files of the suites that ship with the package, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.toml"))}


def find(name: str | Path) -> Path:
    """Find the TOML file of a suite by its path, or by name if it ships with the package."""
    path = Path(name)
    if path.is_file():
        return path
    if str(name) in shipped():
        return shipped()[str(name)]
    raise InputError(f"no suite {str(name)!r}: give the path of a TOML file, or one of {', '.join(shipped())}")


def read(
    name: str | Path,
    *,
    checkpoints: Mapping[str, str] | None = None,
    data: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    seeds: Sequence[int] | None = None,
    eps: str | float | None = None,
) -> Suite:
    """Read a suite from its file, with changes.

    Args:
        name: path of a TOML file, or name of a suite that ships with the package.
        checkpoints: run folders or weights files by model name, which replace the suite's models.
        data, root: name and folder of a data set, which replaces those of the suite.
        limit: number of images of each data set, evenly spaced; 0 for all.
        seeds: replace the suite's seeds.
        eps: radius of every protocol, except sweeps over eps and entries that set their own.

    Raises:
        InputError: no such file, unknown key, value of the wrong type, unknown protocol, or a name given twice.
    """
    path = find(name)
    table = read_toml(path)
    known = ("name", "models", "data", "protocols", "seeds", "precision", "allow", "images", "tables", "eps", "limit")
    for key in table:
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r}: choose from {', '.join(known)}")
    try:
        return build_suite(table, path.stem, checkpoints, data, root, limit, seeds, eps)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def build_suite(
    table: Mapping[str, Any],
    stem: str,
    checkpoints: Mapping[str, str] | None,
    data: str | None,
    root: str | None,
    limit: int | None,
    seeds: Sequence[int] | None,
    eps: str | float | None,
) -> Suite:
    """Build a suite from its TOML table; the arguments are those of ``read``."""
    default_limit = table.get("limit", 0) if limit is None else limit
    if not isinstance(default_limit, int):
        raise InputError(f"limit = {default_limit!r}: a whole number is needed")
    check_at_least(0, limit=default_limit)
    ball = table.get("eps") if eps is None else eps
    models = {name: read_model(name, value) for name, value in tables_of(table, "models").items()}
    sets = {name: build_record(DataSpec, value, f"data.{name}") for name, value in tables_of(table, "data").items()}
    if checkpoints:
        models = {name: ModelSpec(checkpoint=path) for name, path in checkpoints.items()}
    if data is not None:
        sets = {data.rpartition(":")[2].strip("/").replace("/", "-"): DataSpec(name=data, root=root or "")}
    elif root is not None:
        sets = {name: replace(spec, root=root) for name, spec in sets.items()}
    entries = table.get("protocols", [])
    if not isinstance(entries, list):
        raise InputError(f"protocols = {entries!r}: a list of names and tables is needed")
    rest = {key: table[key] for key in ("precision", "allow", "images", "tables") if key in table}
    return build_record(
        Suite,
        rest,
        "",
        base=Suite(
            name=str(table.get("name", stem)),
            models=models,
            data={
                name: replace(
                    spec,
                    name=spec.name or name,
                    limit=default_limit if limit is not None else spec.limit or default_limit,
                )
                for name, spec in sets.items()
            },
            attacks=tuple(read_attack(entry, ball) for entry in entries),
            seeds=tuple(table.get("seeds", (0,)) if seeds is None else seeds),
            tables=tuple(table.get("tables", ())),
        ),
    )


def tables_of(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the tables [key.NAME] by name; InputError if ``key`` holds anything else."""
    found = table.get(key, {})
    if not isinstance(found, Mapping) or not all(isinstance(value, Mapping) for value in found.values()):
        raise InputError(f"{key}: write a table [{key}.NAME] for each")
    return dict(found)


def read_model(name: str, table: Mapping[str, Any]) -> ModelSpec:
    """Read one model's table; InputError if it names more than one kind of model."""
    options = table.get("options", {})
    spec = build_record(ModelSpec, {key: value for key, value in table.items() if key != "options"}, f"models.{name}")
    given = [key for key in ("checkpoint", "source", "config") if getattr(spec, key)]
    if len(given) > 1:
        raise InputError(f"models.{name}: give only one of {' and '.join(given)}")
    owners = {"weights": "source", "preset": "source", "mean": "source", "std": "source", "set": "config"}
    for key, owner in owners.items():
        if getattr(spec, key) and not getattr(spec, owner):
            raise InputError(f"models.{name}: {key} needs {owner}, which is missing")
    if options and not spec.source:
        raise InputError(f"models.{name}: options needs source, which is missing")
    if spec.config:
        load(spec.config, spec.set)
    return replace(spec, options=dict(options))


def read_attack(entry: Any, eps: str | float | None) -> Attack:
    """Read a protocol or a sweep from its name, its file, or a table with ``protocol`` and changes of its values."""
    if isinstance(entry, str) and entry in SWEEPS:
        sweep = SWEEPS[entry]
        if eps is None or sweep.axis == "eps":
            return sweep
        ball = parse_distance("eps", eps)
        return replace(sweep, parts=tuple(part.at(ball) for part in sweep.parts))
    if not isinstance(entry, str | Mapping):
        raise InputError(f"protocols: {entry!r} must be a name or a table")
    found = load_protocol(entry) if isinstance(entry, str) else read_protocol(dict(entry))
    own = isinstance(entry, Mapping) and "eps" in entry
    if eps is None or own or not found.eps:
        return found
    return found.at(parse_distance("eps", eps)).with_values(name=found.name)
