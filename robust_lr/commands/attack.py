"""``robust-lr attack``: evaluate one model under one protocol, print a table and write the result."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .attack_options import AttackOptions, check_options, check_outputs, check_settings, read_options, read_settings
from .attack_plan import Plan, describe, make_plan
from .completion import complete
from .model_record import write_model_record
from .options import model_and_images
from .progress import Bars, progress_bars
from .terminal import (
    GroupedCommand,
    console,
    json_option,
    once_each,
    option_in_group,
    processes_option,
    say,
    threads_option,
    use_threads,
)

if TYPE_CHECKING:
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
def attack(**given: Any) -> None:
    """Attack a network on the test images, print a table and write result.json.

    Run the same command again to resume an interrupted evaluation.
    """
    from ..protocols import Sweep
    from ..utils.devices import torchrun_shard

    options = read_options(given)
    check_options(options)
    settings, model_values = read_settings(options)
    launched = torchrun_shard()
    check_settings(options, settings, launched)
    check_outputs(options)
    use_threads(options.threads)
    plan = make_plan(options, settings, model_values, launched)
    if options.dry_run:
        describe(plan, fresh=options.fresh)
        return
    if launched is not None:
        (plan.whole / plan.file).unlink(missing_ok=True)  # the last process to finish writes it again
    if options.all_targets and not isinstance(settings, Sweep):
        evaluate_all_targets(options, plan, settings)
        return
    curve, folder = evaluate_plan(options, plan), plan.folder
    if plan.shard is not None:
        seconds = sum(result.seconds for result in curve.results)
        number, images = plan.shard[0], curve.results[0].n
        say(f"shard {number}/{plan.shard[1]}: {images} images in {seconds:.1f} s; written to {folder / plan.file}")
    if launched is not None:
        joined = merge_shards(plan, launched[1])
        if joined is None:
            return
        curve, folder = joined, plan.whole
    verdicts = report_evaluation(options, plan, curve, folder)
    if options.strict and any(verdict != "sound" for verdict in verdicts):
        say("--strict: the verdict is not sound")
        sys.exit(1)


def evaluate_all_targets(options: AttackOptions, plan: Plan, protocol: Protocol) -> None:
    """Attack with every wrong class as target, and print the matrix of successes."""
    from ..evaluation.all_targets import attack_all_targets
    from . import report

    model, data = plan.choice.model, plan.choice.data
    with print_warnings(), progress_bars() as bars:
        watch = Watch(bars, f"{protocol.name}, all targets")
        matrix = attack_all_targets(model, data, protocol, **plan.arguments(options), progress=watch.progress)
    console.print(report.matrix_table(matrix))
    say(f"written to {plan.folder / plan.file}")
    report.write_evaluation(options.json_file, plan.folder / plan.file)


def evaluate_plan(options: AttackOptions, plan: Plan) -> Curve:
    """Attack by the protocol, or by all protocols of a sweep."""
    from ..evaluation.harness import evaluate
    from ..evaluation.sweep import sweep
    from ..protocols import Sweep
    from ..results.curve import curve_of

    model, data, settings = plan.choice.model, plan.choice.data, plan.settings
    arguments = {**plan.arguments(options), "shard": plan.shard, "targets": plan.targets}
    with print_warnings(), progress_bars(shown=plan.shows_progress) as bars:
        watch = Watch(bars, plan.choice.name)
        if isinstance(settings, Sweep):
            return sweep(model, data, settings, **arguments, progress=watch.progress)
        result = evaluate(model, data, settings, **arguments, progress=watch.progress, on_rows=watch.count)
    if options.save_images:
        write_model_record(plan.whole, options.where, plan.model_values)
    return curve_of(result)


def merge_shards(plan: Plan, processes: int) -> Curve | None:
    """Merge the shards of all processes of torchrun; None if this is not the last of them to finish."""
    from ..protocols import Sweep
    from ..results.curve import curve_of
    from ..results.shards import merge_sweep_when_complete, merge_when_complete

    if isinstance(plan.settings, Sweep):
        return merge_sweep_when_complete(plan.whole, processes)
    merged = merge_when_complete(plan.whole, processes)
    return None if merged is None else curve_of(merged)


def report_evaluation(options: AttackOptions, plan: Plan, curve: Curve, folder: Path) -> list[str | None]:
    """Print the evaluation in ``folder``, write what else was asked for, and return the verdicts."""
    from ..evaluation.harness import with_targets
    from ..protocols import Sweep
    from ..results.distances import with_distances
    from ..results.stored import read_evaluation
    from . import report

    settings, file = plan.settings, folder / plan.file
    if options.save_targets is not None:
        read_evaluation(folder).targets().save(options.save_targets)
    if not isinstance(settings, Sweep):
        if settings.finds_distances:
            curve = with_distances(curve, read_evaluation(folder).rows, settings)
        settings = with_targets(settings, plan.targets)
    show(curve, settings)
    if options.figure is not None:
        report.curve_picture(curve, options.figure)
    verdicts = [result.verdict for result in curve.results]
    if options.until_sound:
        verdicts = [strengthen_evaluation(options, plan, curve.results[0])]
    report.write_evaluation(options.json_file, file)
    seconds = sum(result.seconds for result in curve.results)
    say(f"{seconds:.1f} s on {curve.results[0].device}; written to {file}")
    return verdicts


@contextmanager
def print_warnings() -> Iterator[None]:
    """Print each warning in one line, without its location in the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        yield


def strengthen_evaluation(options: AttackOptions, plan: Plan, first: Result) -> str | None:
    """Strengthen the attack of an evaluation until the accuracy stops falling; return the final verdict."""
    from ..evaluation.strengthen import DEFAULT_BUDGET, strengthen
    from .until_sound import show_ladder

    arguments = plan.arguments(options)
    names = ("seed", "batch_size", "compute_batch", "name", "workers", "processes", "precision", "allow", "fresh")
    with progress_bars() as bars:
        found = strengthen(
            plan.choice.model,
            plan.choice.data,
            first,
            out=plan.folder,
            budget=DEFAULT_BUDGET if options.budget is None else options.budget,
            progress=Rungs(bars).progress,
            **{name: arguments[name] for name in names},
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
