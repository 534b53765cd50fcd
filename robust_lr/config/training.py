"""The config of a training run, read from TOML with overrides of single values. Unknown keys are errors."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .. import protocols
from ..protocols.files import from_table
from ..utils.checks import build_record
from ..utils.errors import InputError
from ..utils.toml import read_toml, to_literal
from . import recipes
from .sections import ComputeConfig, DataConfig, OutputConfig, TrainConfig, ValidationConfig

__all__ = ["ComputeConfig", "Config", "DataConfig", "OutputConfig", "TrainConfig", "ValidationConfig"]

#: options of [model] that every network has; an override of the network's name keeps these and drops the others
SHARED_OPTIONS = ("name", "width", "stem", "mean", "std")

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run.

    Attributes:
        seed: seed of all random numbers, which also depend on image ids; 0 to 2^32 - 1.
        model: arguments of ``build_model``; the data set determines ``num_classes`` and ``in_channels``.
        attack: attack on the training images; the protocol "none" gives regular training.
        data, train, validation, compute, output: the other sections, see their classes.

    Raises:
        InputError: values that do not fit each other or are out of range.
    """

    seed: int = 0
    model: Mapping[str, Any] = field(default_factory=lambda: {"name": "lrnet26"})
    data: DataConfig = field(default_factory=DataConfig)
    attack: protocols.PGD = field(default_factory=lambda: protocols.get_pgd("lrnet-train"))
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed = {self.seed}: must be between 0 and 2^32 - 1")
        if self.attack.restarts != 1:
            raise InputError(
                f"attack.restarts = {self.attack.restarts}: training uses one start per epoch; set it to 1"
            )
        if "name" not in self.model:
            raise InputError("[model] has no name: give one, e.g. model.name = 'lrnet26'")
        if self.train.loss == "trades" and self.attack.targeted:
            raise InputError("train.loss = 'trades' needs an untargeted attack: set attack.targeted = false")
        for key in ("num_classes", "in_channels"):
            if key in self.model:
                raise InputError(f"model.{key} comes from the data set: leave it out")


#: sections with a dataclass in ``sections``
RECORDS = ("data", "train", "validation", "compute", "output")


def find(name: str | Path) -> Path:
    """Find a TOML file by path, or a config of the package by name, e.g. "imagenet/lrnet26_adv"."""
    path = Path(name)
    if path.is_file():
        return path
    ours = shipped()
    key = path.as_posix().removeprefix("configs/").removesuffix(".toml")
    if key in ours:
        return ours[key]
    raise InputError(f"no config file {str(name)!r}: give the path of a TOML file, or one of {', '.join(ours)}")


def shipped() -> dict[str, Path]:
    """Return the paths of the configs that ship with the package, by name."""
    files = sorted(CONFIGS.rglob("*.toml"))
    return {file.relative_to(CONFIGS).with_suffix("").as_posix(): file for file in files}


def holds_rows(name: str | Path) -> bool:
    """Check whether a config file describes the rows of a table rather than one training run."""
    table = read_toml(find(name))
    return "rows" in table or "base" in table


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply ``section.key=value`` overrides.

    Raises:
        InputError: missing or malformed file, unknown key, value of the wrong type or out of range.
    """
    table = {} if path is None else read_toml(find(path))
    if "rows" in table or "base" in table:
        raise InputError(f"{path} holds the [[rows]] of a table, not one training run: run it with robust-lr table")
    if path is not None and "model" not in table and not any(each.startswith("model.") for each in overrides):
        raise InputError(
            f"{path} has no [model]: the config of a training run must name a network, e.g. name = 'lrnet26' in [model]"
        )
    named = table.get("model", {}).get("name") if isinstance(table.get("model"), dict) else None
    before = dict(table.get("model", {})) if named else {}
    set_values(table, overrides)
    if named and isinstance(table["model"], dict) and table["model"].get("name") != named:
        leave_out_options(table["model"], before, overrides)
    return from_dict(table)


def leave_out_options(model: dict[str, Any], before: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Drop from ``model`` the options ``before`` of the file's network, for overrides that name another network."""
    given = {override.partition("=")[0].strip().removeprefix("model.") for override in overrides}
    for key in before:
        if key not in SHARED_OPTIONS and key not in given:
            model.pop(key, None)


def set_values(
    table: dict[str, Any], overrides: Sequence[str], form: str = "section.key=value, e.g. train.epochs=3"
) -> None:
    """Apply overrides in order, see ``set_value``."""
    for override in overrides:
        set_value(table, override, form)


def set_value(table: dict[str, Any], override: str, form: str = "section.key=value, e.g. train.epochs=3") -> None:
    """Apply one override to ``table`` in place; a value that is not TOML is taken as a string.

    Args:
        override: ``section.key=value``; ``recipe=NAME`` sets every value of the recipe.
        form: the expected form, for error messages.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"`overrides` {override!r}: write {form}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError(f"`overrides` {override!r}: {part} is a value, not a section")
    if parts[-1] == "recipe":
        recipes.replace_by_recipe(table, value)
    else:
        table[parts[-1]] = value


def from_dict(table: Mapping[str, Any]) -> Config:
    """Build a checked Config from nested tables, as ``to_dict`` returns them; a ``recipe`` fills in missing values."""
    table = recipes.complete_with_recipe(table, table["recipe"]) if "recipe" in table else dict(table)
    table.pop("recipe", None)
    sections: dict[str, Any] = {}
    for name in ("model", "attack", *RECORDS):
        section = table.pop(name, {})
        if not isinstance(section, Mapping):
            raise InputError(f"{name} = {section!r}: a [{name}] table is needed")
        sections[name] = section
    top = build_record(Config, table, "")
    model = {key: tuple(v) if isinstance(v, list) else v for key, v in sections["model"].items()}
    return replace(
        top,
        model=model or top.model,
        attack=read_attack(sections["attack"]),
        data=build_record(DataConfig, sections["data"], "data"),
        train=build_record(TrainConfig, sections["train"], "train"),
        validation=build_record(ValidationConfig, sections["validation"], "validation"),
        compute=build_record(ComputeConfig, sections["compute"], "compute"),
        output=build_record(OutputConfig, sections["output"], "output"),
    )


def read_attack(table: Mapping[str, Any], default: str = "lrnet-train") -> protocols.PGD:
    """Build the protocol that the [attack] section describes; InputError if it is not PGD."""
    changed = from_table({"protocol": table.get("protocol", default)})
    if not isinstance(changed, protocols.PGD):
        raise InputError(f"protocol {changed.name!r} is not PGD, which training requires; try 'lrnet-train'")
    changed = from_table(table, default)
    assert isinstance(changed, protocols.PGD)
    return changed


def to_dict(config: Config) -> dict[str, Any]:
    """Return nested tables from which ``from_dict`` builds the same Config; values that are None are left out."""
    sections = {
        "model": dict(config.model),
        **{
            name: {f.name: getattr(part, f.name) for f in fields(part)} for name, part in split_sections(config).items()
        },
    }
    clean = {name: {k: v for k, v in section.items() if v is not None} for name, section in sections.items()}
    return {"seed": config.seed, **clean}


def split_sections(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("data", "attack", *RECORDS)}


def to_toml(config: Config) -> str:
    """Return the resolved config as TOML, from which ``from_dict`` builds the same Config."""
    lines = []
    for name, section in to_dict(config).items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{key} = {to_literal(value)}" for key, value in section.items())]
        else:
            lines.append(f"{name} = {to_literal(section)}")
    return "\n".join(lines) + "\n"
