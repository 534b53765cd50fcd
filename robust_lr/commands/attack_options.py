"""What the command line of ``robust-lr attack`` says, and which of its options go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import InputError

if TYPE_CHECKING:
    from ..protocols import Sweep
    from ..protocols.base import Protocol


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """Values of the options, under their names on the command line.

    Attributes:
        attack_source: ``--attack``.
        overrides: ``--set``.
        surrogate_source: ``--surrogate``.
        probed: ``--check``.
        shard_text: ``--shard``.
        where: options that choose the model and the images, arguments of ``options.choose``.
    """

    targeted: bool
    untargeted: bool
    protocol: str | None
    attack_source: str | None
    overrides: tuple[str, ...]
    eps: str | None
    steps: str | None
    surrogate_source: str | None
    all_targets: bool
    seed: int
    targets_file: Path | None
    save_targets: Path | None
    allow: tuple[str, ...]
    probed: bool
    thorough: bool
    verdict_passes: int
    strict: bool
    until_sound: bool
    budget: int | None
    out: Path | None
    save_images: bool
    json_file: Path | None
    figure: Path | None
    fresh: bool
    dry_run: bool
    shard_text: str | None
    precision: str
    batch_size: int
    compute_batch: int | None
    workers: int
    threads: int | None
    processes: int | None
    device: str
    where: Mapping[str, Any]

    @property
    def sources(self) -> list[str]:
        """Names of protocols and attacks that were given; one is allowed."""
        named = [("lrnet-targeted", self.targeted), ("lrnet-untargeted", self.untargeted)]
        given = [self.protocol, self.attack_source]
        return [name for name, wanted in named if wanted] + [name for name in given if name is not None]

    @property
    def check(self) -> str | None:
        """How thoroughly the result is probed, as in ``evaluate``."""
        if self.thorough:
            return "thorough"
        if self.until_sound:
            return "default"
        return None if self.probed else "off"


def read_options(given: Mapping[str, Any]) -> AttackOptions:
    """Divide the values of the command line into the attack's own and those that choose the model and the images."""
    names = {each.name for each in fields(AttackOptions)} - {"where"}
    own = {name: given[name] for name in names}
    return AttackOptions(**own, where={name: value for name, value in given.items() if name not in names})


def check_options(options: AttackOptions) -> None:
    """Raise an InputError for options that contradict each other whatever the protocol, or for impossible numbers."""
    from ..utils.checks import check_at_least
    from ..utils.machine import check_processes

    if options.thorough and not options.probed:
        raise InputError("--thorough and --no-check contradict each other: give only one of them")
    if options.strict and not options.probed:
        raise InputError("--strict needs a verdict: leave out --no-check")
    elsewhere = options.shard_text is not None or options.all_targets or options.surrogate_source is not None
    if options.until_sound and (not options.probed or elsewhere):
        raise InputError(
            "--until-sound needs a verdict on all images: leave out --no-check, --shard, --all-targets and --surrogate"
        )
    if options.budget is not None and not options.until_sound:
        raise InputError("--budget is the budget of --until-sound: give both, or leave it out")
    if len(options.sources) != 1:
        raise InputError("give exactly one of --targeted, --untargeted, --protocol NAME and --attack SOURCE")
    check_at_least(1, batch_size=options.batch_size)
    check_processes(workers=options.workers)


def read_settings(options: AttackOptions) -> tuple[Protocol | Sweep, dict[str, Any]]:
    """Return the protocol or sweep with its changes, and the model's arguments among the values of --set."""
    from ..config.training import set_values
    from ..protocols import SWEEPS
    from ..protocols.changes import apply_grid
    from ..protocols.files import from_table

    (source,) = options.sources
    table: dict[str, Any] = {"protocol": source}
    set_values(table, options.overrides, "key=value, e.g. eps=8/255")
    model_values = table.pop("model", {})
    settings: Protocol | Sweep
    if options.attack_source is not None:
        settings = custom_attack(source, {**table, "eps": table.get("eps", (options.eps or "").partition(",")[0])})
    elif source not in SWEEPS:
        settings = from_table(table)
    elif len(table) > 1:
        raise sweep_error("--set and --save-targets are", source)
    else:
        settings = SWEEPS[source]
    return apply_grid(settings, eps=options.eps, steps=options.steps), model_values


def sweep_error(options: str, sweep: str) -> InputError:
    """Return the error for options that a sweep cannot take."""
    return InputError(f"{options} for single protocols: {sweep!r} is a sweep over several")


def custom_attack(source: str, table: Mapping[str, Any]) -> Protocol:
    """Return the protocol of the user's own attack, after importing its module."""
    from ..models.external import load_callable, source_name
    from ..protocols.files import from_values

    if not table["eps"]:
        raise InputError("--attack needs the radius of the ball: give --eps, e.g. --eps 8/255")
    values = {key: value for key, value in table.items() if key != "protocol"}
    about = {"attack": "custom", "entry": source, "name": source_name(source), **values}
    if not str(about["eps"]).replace("/", "").replace(".", "").isdigit():
        raise InputError(f"eps = {about['eps']!r}: a number or a fraction like 8/255 is needed")
    return from_values(about).with_values(function=load_callable(source))


def check_settings(options: AttackOptions, settings: Protocol | Sweep, launched: tuple[int, int] | None) -> None:
    """Raise an InputError for options that do not suit the protocol or torchrun, whose shard is ``launched``."""
    from ..protocols import Sweep

    if options.all_targets:
        others = (options.figure, options.save_targets, options.targets_file, options.shard_text, launched)
        if isinstance(settings, Sweep) or any(other is not None for other in others):
            raise InputError("--all-targets takes one protocol, and no --targets, --save-targets, --figure or shards")
        if not settings.targeted:
            raise InputError(f"--all-targets: protocol {settings.name!r} is untargeted; use e.g. --targeted")
    if isinstance(settings, Sweep):
        if options.save_targets is not None:
            raise sweep_error("--set and --save-targets are", settings.name)
        if options.until_sound:
            raise sweep_error("--until-sound is", settings.name)
    elif options.until_sound and settings.targeted:
        raise InputError(f"--until-sound is for untargeted attacks: {settings.name!r} is targeted")
    elif options.figure is not None and not settings.record and not settings.finds_distances:
        raise InputError(f"--figure draws a curve, but {settings.name!r} has none: use e.g. --protocol sweep-steps")
    elif options.save_targets is not None and not settings.targeted:
        raise InputError(f"--save-targets: protocol {settings.name!r} is untargeted, so it has no targets")
    if launched is not None and options.until_sound:
        raise InputError("--until-sound: torchrun divides the images; run it without torchrun")
    if launched is not None and options.shard_text is not None:
        raise InputError("--shard: torchrun already divides the images; leave it out")


def check_outputs(options: AttackOptions) -> None:
    """Raise an InputError unless every file that is to be written can be."""
    from ..utils.files import check_writable, check_writable_folder
    from ..utils.pictures import check_picture

    if options.figure is not None:
        check_picture("figure", options.figure)
    check_writable(save_targets=options.save_targets, json_file=options.json_file)
    if options.out is None or not options.out.is_file():
        check_writable_folder(out=options.out)
