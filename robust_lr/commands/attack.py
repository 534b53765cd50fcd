"""``robust-lr attack``: evaluate one model under one protocol, print a table and write the result."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..utils.errors import InputError
from .completion import complete
from .model_record import write_model_record
from .options import Choice, choose, model_and_images
from .progress import Bars, progress_bars
from .terminal import (
    GroupedCommand,
    console,
    count_of,
    json_option,
    once_each,
    option_in_group,
    processes_option,
    say,
    threads_option,
    use_threads,
)

if TYPE_CHECKING:
    from torch import nn

    from ..protocols import Sweep
    from ..protocols.base import Protocol
    from ..results.curve import Curve
    from ..results.ledger import Row
    from ..results.result import Result

of_attack, of_guards, of_work = map(option_in_group, ("Attack", "Guards", "Work and output"))
_PATH = click.Path(path_type=Path)


@click.command(cls=GroupedCommand)
@of_attack("--targeted", is_flag=True, help="Protocol lrnet-targeted.")
@of_attack("--untargeted", is_flag=True, help="Protocol lrnet-untargeted.")
@of_attack(
    "--protocol",
    metavar="NAME",
    help="A name of `robust-lr list protocols`, or a TOML file.",
    shell_complete=complete("protocols"),
)
@of_attack(
    "--attack",
    "attack_source",
    metavar="SOURCE",
    help="Your own attack, file.py:callable or module:callable, which is run: (model, x, labels, targets) -> x_adv. "
    "Needs --eps; optional: --set norm=l2, targeted=true, together=true.",
)
@of_attack(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the protocol, e.g. eps=8/255.",
    callback=once_each,
)
@of_attack("--eps", metavar="LIST", help="Radius of the ball, e.g. 4/255, or several for a curve, e.g. 0,2,4,8/255.")
@of_attack("--steps", metavar="LIST", help="Number of steps, or several for a curve, e.g. 1,10,100.")
@of_attack(
    "--surrogate",
    "surrogate_source",
    metavar="SOURCE",
    help="Transfer attack with this network's gradients: a run, a checkpoint, file.py:callable or module:callable.",
)
@of_attack(
    "--all-targets", is_flag=True, help="Attack with every wrong class as target, and print a matrix of successes."
)
@of_attack("--seed", type=int, default=0, show_default=True, help="Seed of random starts and targets.", metavar="N")
@of_attack(
    "--targets", "targets_file", type=_PATH, help="Use the target classes that --save-targets wrote to this file."
)
@of_attack("--save-targets", type=_PATH, help="Write the target classes to this file, for attacks on other models.")
@model_and_images
@of_guards(
    "--allow",
    multiple=True,
    metavar="GUARD",
    help="Do not let this guard stop the evaluation, e.g. probabilities; may be repeated.",
    shell_complete=complete("guards"),
)
@of_guards(
    "--check/--no-check",
    "probed",
    default=True,
    help="Probe the result for a verdict (sound, weak or misled), or skip the probes.  [default: --check]",
)
@of_guards("--thorough", is_flag=True, help="Probe with eight times the default budget.")
@of_guards(
    "--verdict-passes",
    type=int,
    default=10,
    show_default=True,
    help="Passes per image of a random model, all of which must be right; for protocols with eot > 1.",
    metavar="N",
)
@of_guards("--strict", is_flag=True, help="Exit with 1 unless the verdict is sound.")
@of_guards(
    "--until-sound",
    is_flag=True,
    help="Attack the remaining images with increasingly strong attacks until the accuracy stops falling.",
)
@of_guards(
    "--budget",
    type=int,
    metavar="N",
    help="Passes per image for --until-sound; a backward pass counts as two.  [default: 12000]",
)
@of_work("--out", type=_PATH, help="Folder for result.json and the ledger.")
@of_work("--save-images", is_flag=True, help="Save the adversarial images, for `robust-lr score` and `transfer`.")
@json_option(of_work)
@of_work("--figure", type=_PATH, help="Figure of a curve: .png, .pdf or .svg; needs matplotlib.")
@of_work("--fresh", is_flag=True, help="Start over, even if the folder holds an evaluation.")
@of_work("--dry-run", is_flag=True, help="Check everything and print what would run; attack and write nothing.")
@of_work(
    "--shard",
    "shard_text",
    metavar="I/N",
    help="Evaluate only the I-th of N parts of the images, in a separate folder; `robust-lr merge` merges the parts. "
    "Under torchrun, each process takes one part, and the last merges them.",
)
@of_work(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="NAME",
    help="Precision of the attack: fp32, tf32 or bf16; a lower one must agree with fp32 on a sample.",
)
@of_work("--batch-size", type=int, default=64, show_default=True, help="Images loaded at a time.", metavar="N")
@of_work(
    "--compute-batch",
    type=int,
    help="Images in every pass of the model, with padding; with 0, nothing is padded, and results may depend on the "
    "batch by rounding.  [default: on a CPU 64, fewer for few or large images; else 0]",
    metavar="N",
)
@of_work("--workers", type=int, default=0, show_default=True, help="Processes that load images.", metavar="N")
@threads_option(of_work)
@processes_option(of_work)
@of_work("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...", metavar="NAME")
def attack(
    targeted: bool,
    untargeted: bool,
    protocol: str | None,
    attack_source: str | None,
    overrides: tuple[str, ...],
    eps: str | None,
    steps: str | None,
    surrogate_source: str | None,
    all_targets: bool,
    seed: int,
    targets_file: Path | None,
    save_targets: Path | None,
    allow: tuple[str, ...],
    probed: bool,
    thorough: bool,
    verdict_passes: int,
    strict: bool,
    until_sound: bool,
    budget: int | None,
    out: Path | None,
    save_images: bool,
    json_file: Path | None,
    figure: Path | None,
    fresh: bool,
    dry_run: bool,
    shard_text: str | None,
    precision: str,
    batch_size: int,
    compute_batch: int | None,
    workers: int,
    threads: int | None,
    processes: int | None,
    device: str,
    **where: Any,
) -> None:
    """Attack a network on the test images, print a table and write result.json.

    Run the same command again to resume an interrupted evaluation.
    """
    from .. import protocols
    from ..config.training import set_values
    from ..evaluation.all_targets import attack_all_targets
    from ..evaluation.harness import evaluate, with_targets
    from ..evaluation.sweep import sweep
    from ..protocols.changes import apply_grid
    from ..protocols.files import from_table as read_protocol
    from ..results.curve import CURVE, curve_of
    from ..results.distances import with_distances
    from ..results.shards import merge_sweep_when_complete, merge_when_complete, parse_shard, shard_folder
    from ..results.stored import RESULT, read_evaluation
    from ..results.target_matrix import MATRIX
    from ..results.targets import load_targets
    from ..utils.checks import check_at_least
    from ..utils.devices import device_of_process, torchrun_shard
    from ..utils.files import check_writable, check_writable_folder
    from ..utils.machine import check_processes
    from ..utils.pictures import check_picture
    from . import report

    chosen = [*["lrnet-targeted"] * targeted, *["lrnet-untargeted"] * untargeted, *[protocol] * (protocol is not None)]
    chosen += [] if attack_source is None else [attack_source]
    if thorough and not probed:
        raise InputError("--thorough and --no-check contradict each other: give only one of them")
    if strict and not probed:
        raise InputError("--strict needs a verdict: leave out --no-check")
    if until_sound and (not probed or shard_text is not None or all_targets or surrogate_source is not None):
        raise InputError(
            "--until-sound needs a verdict on all images: leave out --no-check, --shard, --all-targets and --surrogate"
        )
    if budget is not None and not until_sound:
        raise InputError("--budget is the budget of --until-sound: give both, or leave it out")
    if len(chosen) != 1:
        raise InputError("give exactly one of --targeted, --untargeted, --protocol NAME and --attack SOURCE")
    check_at_least(1, batch_size=batch_size)
    check_processes(workers=workers)
    table: dict[str, Any] = {"protocol": chosen[0]}
    set_values(table, overrides, "key=value, e.g. eps=8/255")
    options = table.pop("model", {})
    settings: Protocol | Sweep
    if attack_source is not None:
        settings = custom_attack(attack_source, {**table, "eps": table.get("eps", (eps or "").partition(",")[0])})
    else:
        settings = protocols.SWEEPS[chosen[0]] if chosen[0] in protocols.SWEEPS else read_protocol(table)
    settings = apply_grid(settings, eps=eps, steps=steps)
    launched = torchrun_shard()
    if all_targets:
        others = (figure, save_targets, targets_file, shard_text, launched)
        if isinstance(settings, protocols.Sweep) or any(other is not None for other in others):
            raise InputError("--all-targets takes one protocol, and no --targets, --save-targets, --figure or shards")
        if not settings.targeted:
            raise InputError(f"--all-targets: protocol {settings.name!r} is untargeted; use e.g. --targeted")
    if isinstance(settings, protocols.Sweep):
        if (chosen[0] in protocols.SWEEPS and len(table) > 1) or save_targets:
            raise InputError(
                f"--set and --save-targets are for single protocols: {settings.name!r} is a sweep over several"
            )
        if until_sound:
            raise InputError(f"--until-sound is for single protocols: {settings.name!r} is a sweep over several")
    elif until_sound and settings.targeted:
        raise InputError(f"--until-sound is for untargeted attacks: {settings.name!r} is targeted")
    elif figure is not None and not settings.record and not settings.finds_distances:
        raise InputError(f"--figure draws a curve, but {settings.name!r} has none: use e.g. --protocol sweep-steps")
    elif save_targets is not None and not settings.targeted:
        raise InputError(f"--save-targets: protocol {settings.name!r} is untargeted, so it has no targets")
    if figure is not None:
        check_picture("figure", figure)
    check_writable(save_targets=save_targets, json_file=json_file)
    if out is None or not out.is_file():
        check_writable_folder(out=out)
    if launched is not None and until_sound:
        raise InputError("--until-sound: torchrun divides the images; run it without torchrun")
    if launched is not None and shard_text is not None:
        raise InputError("--shard: torchrun already divides the images; leave it out")
    shard = launched or (None if shard_text is None else parse_shard(shard_text))
    use_threads(threads)
    given = None if targets_file is None else load_targets(targets_file)
    choice = choose(**where, device=device_of_process(device), options=options)
    surrogate = None if surrogate_source is None else load_surrogate(surrogate_source, choice)
    named = settings.name if surrogate is None else f"{settings.name},surrogate={surrogate.name}"
    named += ",all-targets" if all_targets else ""
    whole = choice.folder / "attacks" / named if out is None else out
    folder = whole if shard is None or (out is not None and launched is None) else shard_folder(whole, shard)
    file = CURVE if isinstance(settings, protocols.Sweep) else MATRIX if all_targets else RESULT
    if dry_run:
        describe(choice, settings, folder, finished=(folder / file).exists() and not fresh)
        return
    if launched is not None:
        (whole / file).unlink(missing_ok=True)  # the last process to finish writes it again
    work: dict[str, Any] = {
        "seed": seed,
        "shard": shard,
        "batch_size": batch_size,
        "compute_batch": compute_batch,
        "out": folder,
        "resume": True,
        "fresh": fresh,
        "images": save_images,
        "targets": given,
        "name": choice.name,
        "workers": workers,
        "processes": processes,
        "precision": precision,
        "allow": allow,
        "verdict_passes": verdict_passes,
        "surrogate": surrogate,
        "check": "thorough" if thorough else "default" if until_sound else None if probed else "off",
    }
    if all_targets and not isinstance(settings, protocols.Sweep):
        del work["shard"], work["targets"]
        with print_warnings(), progress_bars() as bars:
            watch = Watch(bars, f"{settings.name}, all targets")
            matrix = attack_all_targets(choice.model, choice.data, settings, **work, progress=watch.progress)
        console.print(report.matrix_table(matrix))
        say(f"written to {folder / file}")
        report.write_evaluation(json_file, folder / file)
        return
    with print_warnings(), progress_bars(shown=launched is None or launched[0] == 1) as bars:
        if isinstance(settings, protocols.Sweep):
            curve = sweep(choice.model, choice.data, settings, **work, progress=Watch(bars, choice.name).progress)
        else:
            watch = Watch(bars, choice.name)
            result = evaluate(choice.model, choice.data, settings, **work, progress=watch.progress, on_rows=watch.count)
            curve = curve_of(result)
            if save_images:
                write_model_record(whole, where, options)
    if shard is not None:
        n, seconds = curve.results[0].n, sum(result.seconds for result in curve.results)
        say(f"shard {shard[0]}/{shard[1]}: {n} images in {seconds:.1f} s; written to {folder / file}")
    if launched is not None:
        if isinstance(settings, protocols.Sweep):
            joined = merge_sweep_when_complete(whole, launched[1])
        else:
            merged = merge_when_complete(whole, launched[1])
            joined = None if merged is None else curve_of(merged)
        if joined is None:
            return
        curve, folder = joined, whole
    if save_targets is not None:
        read_evaluation(folder).targets().save(save_targets)
    if not isinstance(settings, protocols.Sweep) and settings.finds_distances:
        curve = with_distances(curve, read_evaluation(folder).rows, settings)
    show(curve, settings if isinstance(settings, protocols.Sweep) else with_targets(settings, given))
    if figure is not None:
        report.curve_picture(curve, figure)
    verdicts = [result.verdict for result in curve.results]
    if until_sound:
        verdicts = [strengthen_evaluation(choice, curve.results[0], folder, budget, work)]
    report.write_evaluation(json_file, folder / file)
    seconds = sum(result.seconds for result in curve.results)
    say(f"{seconds:.1f} s on {curve.results[0].device}; written to {folder / file}")
    if strict and any(verdict != "sound" for verdict in verdicts):
        say("--strict: the verdict is not sound")
        sys.exit(1)


@contextmanager
def print_warnings() -> Iterator[None]:
    """Print each warning in one line, without its location in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        yield


def strengthen_evaluation(
    choice: Choice, first: Result, folder: Path, budget: int | None, work: dict[str, Any]
) -> str | None:
    """Strengthen the attack of an evaluation until the accuracy stops falling; return the final verdict."""
    from ..evaluation.strengthen import DEFAULT_BUDGET, strengthen
    from .until_sound import show_ladder

    names = ("seed", "batch_size", "compute_batch", "name", "workers", "processes", "precision", "allow", "fresh")
    with progress_bars() as bars:
        found = strengthen(
            choice.model,
            choice.data,
            first,
            out=folder,
            budget=DEFAULT_BUDGET if budget is None else budget,
            progress=Rungs(bars).progress,
            **{name: work[name] for name in names},
        )
    show_ladder(found)
    return found.verdict


class Rungs:
    """Progress bars, one for each attack of --until-sound."""

    def __init__(self, bars: Bars):
        self.bars = bars
        self.tasks: dict[str, Any] = {}

    def progress(self, attack: str, done: int, total: int) -> None:
        if attack not in self.tasks:
            self.tasks[attack] = self.bars.add(f"attacking by {attack}", unit="images")
        self.bars.update(self.tasks[attack], completed=done, total=total)


class Watch:
    """A progress bar for an evaluation, with the robust accuracy so far."""

    def __init__(self, bars: Bars, name: str):
        self.bars, self.task = bars, bars.add(f"attacking {name}", unit="images")
        self.rows = self.robust = 0

    def count(self, rows: Sequence[Row]) -> None:
        self.rows += len(rows)
        self.robust += sum(row.robust for row in rows)

    def progress(self, done: int, total: int) -> None:
        found = f"robust {100 * self.robust / self.rows:.1f} %" if self.rows else ""
        self.bars.update(self.task, completed=done, total=total, found=found)


def load_surrogate(source: str, choice: Choice) -> nn.Module:
    """Load the network of --surrogate onto the device of the model, and set its ``name``."""
    from ..models.checkpoint import load_model
    from ..models.external import load_source, source_name
    from ..utils.contexts import device_of
    from .options import checkpoint_name

    model: nn.Module
    if Path(source).exists():
        model, name = load_model(Path(source)), checkpoint_name(Path(source))
    else:
        model = load_source(source, num_classes=choice.data.num_classes, in_channels=choice.data.image_shape[0])
        name = source_name(source)
    model.name = name  # type: ignore[assignment]
    return model.to(device_of(choice.model))


def custom_attack(source: str, table: dict[str, Any]) -> Protocol:
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


def describe(choice: Choice, settings: Protocol | Sweep, folder: Path, *, finished: bool) -> None:
    """Print the model, images, protocol and folder of an evaluation."""
    say(f"model      {choice.name} on {next(choice.model.parameters()).device}")
    say(f"images     {count_of(len(choice.data), 'image')} of {choice.data.name}")
    say(f"protocol   {settings.name}: {settings}")
    say(f"folder     {folder}{', already finished' if finished else ''}")
    say("nothing was attacked or written (--dry-run)")


def show(curve: Curve, settings: Protocol | Sweep) -> None:
    """Print the tables of an evaluation."""
    from ..protocols import Sweep
    from ..results.text import randomness_in_words
    from . import report

    if not isinstance(settings, Sweep):
        (result,) = curve.results
        console.print(report.result_table(result, settings))
        if result.surrogate is not None:
            say(f"transfer: gradients of {result.surrogate['name']}")
        if result.randomness is not None:
            say(randomness_in_words(result.randomness))
        console.print(report.check_table("validity", result.validity))
        console.print(report.verdict_text(result))
    if curve.points:
        console.print(report.curve_table(curve))
