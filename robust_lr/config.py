"""An experiment as a frozen record: TOML, then ``--set`` overrides, then checks. Unknown keys are errors."""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import protocols
from .augment import AUGMENTATIONS
from .errors import InputError
from .text import check_name, typed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")

CONFIGS = Path(__file__).parent / "configs"


def at_least(low: float, **values: float) -> None:
    """InputError unless every value is a finite number >= ``low``."""
    for name, value in values.items():
        if not low <= value < inf:
            raise InputError(f"{name} = {value}: must be at least {low} and finite")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on: the arguments of ``data.load``.

    Attributes:
        name: of the data set.
        root: folder of a data set that does not ship with the package.
        augment: random transformation of training images, see ``augment.AUGMENTATIONS``.
        workers: processes that decode images; 0 loads in the training process.
        limit: only the first images of the training split; 0 means all.
    """

    name: str = "fashion-mnist-mini"
    root: str | None = None
    augment: str = "none"
    workers: int = 0
    limit: int = 0

    def __post_init__(self) -> None:
        check_name("augmentation", self.augment, AUGMENTATIONS)
        at_least(0, workers=self.workers, limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The schedule of stochastic gradient descent; defaults are the paper's (appendix).

    Attributes:
        epochs, batch_size: whole passes over the training images, and images per step.
        lr: peak learning rate, reached linearly after ``warmup_epochs`` and divided by 10 at each of ``milestones``
            (epochs).
        momentum, weight_decay: of SGD; the decay applies to every parameter.
        threads: CPU threads, 0 for PyTorch's choice. Two can be slower than one for small networks.
        device: "cpu", "cuda", "cuda:1", ... or "auto".
    """

    epochs: int = 110
    batch_size: int = 1024
    lr: float = 0.4
    warmup_epochs: float = 5.0
    milestones: tuple[int, ...] = (30, 60, 90)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    threads: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs)
        at_least(2, batch_size=self.batch_size)  # batch norm needs two images
        at_least(0, lr=self.lr, warmup_epochs=self.warmup_epochs, weight_decay=self.weight_decay, threads=self.threads)
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum = {self.momentum}: must be in [0, 1)")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise InputError(f"milestones = {list(self.milestones)}: increasing epochs, each at least 1, are needed")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run.

    Attributes:
        seed: of everything random, with the image ids; 0 to 2^32 - 1.
        model: arguments of ``build_model``; classes and channels come from the data.
        attack: what the training images are attacked with; protocol "none" trains regularly.
    """

    seed: int = 0
    model: Mapping[str, Any] = field(default_factory=lambda: {"name": "lrnet26"})
    data: DataConfig = DataConfig()
    attack: protocols.PGD = protocols.PROTOCOLS["lrnet-train"]
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed = {self.seed}: must be between 0 and 2^32 - 1")
        if self.attack.restarts != 1:
            raise InputError(f"attack.restarts = {self.attack.restarts}: training takes one start an epoch, use 1")
        if "name" not in self.model:
            raise InputError("[model] has no name: give one, e.g. model.name = 'lrnet26'")
        for key in ("num_classes", "in_channels"):
            if key in self.model:
                raise InputError(f"model.{key} comes from the data set: leave it out")


def find(name: str | Path) -> Path:
    """A TOML file by path, or a config that ships with the package by name, e.g. "lrnet26_imagenet"."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = CONFIGS / (path.name if path.suffix == ".toml" else f"{path.name}.toml")
    if path.parent in (Path(), Path("configs")) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
    raise InputError(f"no config file {str(name)!r}: give the path of a TOML file, or one of {names}")


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply ``section.key=value`` overrides.

    Raises:
        InputError: missing or malformed file, unknown key, value of the wrong type or out of range.
    """
    table = {} if path is None else read_toml(find(path))
    for override in overrides:
        set_value(table, override)
    return from_dict(table)


def set_value(table: dict[str, Any], override: str, form: str = "section.key=value, e.g. train.epochs=3") -> None:
    """Apply one override of that ``form``; the value is TOML, or else a bare string."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {override!r}: write {form}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"--set {override!r}: {part} is a value, not a section")
    table[parts[-1]] = value


def from_dict(table: Mapping[str, Any]) -> Config:
    """A checked Config from nested tables, as ``to_dict`` gives them."""
    table = dict(table)
    sections: dict[str, Any] = {}
    for name in ("model", "data", "attack", "train"):
        section = table.pop(name, {})
        if not isinstance(section, Mapping):
            raise InputError(f"{name} = {section!r}: a [{name}] table is needed")
        sections[name] = section
    top = make(Config, table, "top level")
    model = {key: tuple(v) if isinstance(v, list) else v for key, v in sections["model"].items()}
    return replace(
        top,
        model=model or top.model,
        data=make(DataConfig, sections["data"], "data"),
        attack=attack(sections["attack"]),
        train=make(TrainConfig, sections["train"], "train"),
    )


def attack(table: Mapping[str, Any], default: str = "lrnet-train") -> protocols.PGD:
    """[attack]: a named ``protocol``, whose values the other keys replace; eps and step_size may be "16/255"."""
    for key in table:
        check_name("key in [attack]", key, ["protocol", *(f.name for f in fields(protocols.PGD))])
    values = dict(table)
    base = protocols.get(values.pop("protocol", default))
    if not values:
        return base
    for key in ("eps", "step_size"):
        if isinstance(values.get(key), str):
            try:
                values[key] = float(Fraction(values[key]))
            except (ValueError, ZeroDivisionError):
                raise InputError(
                    f"attack.{key} = {values[key]!r}: a number in [0, 1] or a fraction like 16/255"
                ) from None
    values = {"name": "custom", "source": f"{base.name} with changes", **values}
    return make(protocols.PGD, values, "attack", base=base)


def make(kind: type[Record], table: Mapping[str, Any], section: str, base: Record | None = None) -> Record:
    """``kind(**table)``, or ``base`` with those values replaced, once names and types have been checked."""
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        check_name(f"key in [{section}]", key, [f.name for f in fields(kind)])
        values[key] = typed(hints[key], value, f"{section}.{key}")
    return kind(**values) if base is None else replace(base, **values)


def to_dict(config: Config) -> dict[str, Any]:
    """Nested tables that ``from_dict`` turns into the same Config; unset values are left out."""
    sections = {
        "model": dict(config.model),
        **{name: {f.name: getattr(part, f.name) for f in fields(part)} for name, part in parts(config).items()},
    }
    clean = {name: {k: v for k, v in section.items() if v is not None} for name, section in sections.items()}
    return {"seed": config.seed, **clean}


def parts(config: Config) -> dict[str, Any]:
    return {"data": config.data, "attack": config.attack, "train": config.train}


def to_toml(config: Config) -> str:
    """The resolved config as TOML, which ``from_dict`` turns into the same Config."""
    lines = []
    for name, section in to_dict(config).items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{key} = {literal(value)}" for key, value in section.items())]
        else:
            lines.append(f"{name} = {literal(section)}")
    return "\n".join(lines) + "\n"


def literal(value: Any) -> str:
    """A value in TOML, where numbers, strings, booleans and lists look as in JSON."""
    return json.dumps(value, ensure_ascii=False)  # JSON's pairs of escapes for rare characters are no TOML
