"""``robust-lr score`` and ``robust-lr transfer``: evaluate other models on saved adversarial images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from ..utils.errors import InputError
from .options import model_alone
from .terminal import GroupedCommand, console, json_option, option_in_group, say, threads_option, use_threads

if TYPE_CHECKING:
    from torch import nn

    from ..evaluation.score import Score, Transfer

_PATH = click.Path(path_type=Path)
of_work = option_in_group("Work and output")


@click.command(cls=GroupedCommand)
@click.argument("run", type=_PATH)
@model_alone
@of_work("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@threads_option(of_work)
@json_option(of_work)
def score(run: Path, device: str, threads: int | None, json_file: Path | None, **where: Any) -> None:
    """Evaluate any model on saved adversarial images, without a new attack.

    RUN is a folder that `robust-lr attack --save-images` wrote. The default model is the shipped network. The network
    that was attacked reproduces its robust accuracy.
    """
    from ..evaluation.score import score as judge
    from ..results.stored import read_evaluation
    from ..utils.devices import pick_device
    from ..utils.files import check_writable
    from .terminal import write_record

    check_writable(json_file=json_file)
    use_threads(threads)
    read_evaluation(run)  # fail before a model is loaded
    model, name = load_chosen_model(run, **where)
    found = judge(run, model.to(pick_device(device)), name=name)
    console.print(score_table(found))
    if json_file is not None:
        write_record(json_file, found.to_dict())


def load_chosen_model(run: Path, **where: Any) -> tuple[nn.Module, str]:
    """Load the model that the options choose, with the classes and channels of ``run``; return it and its name."""
    from ..models.checkpoint import load_model
    from ..models.external import load_source, source_name
    from .options import checkpoint_name, normalization

    checkpoint, source = where["checkpoint"], where["source"]
    if source is None:
        for option in ("weights", "preset", "mean", "std"):
            if where[option] is not None:
                raise InputError(f"--{option} applies only to --model: give --model NAME too, or leave it out")
        return load_model(checkpoint), checkpoint_name(checkpoint)
    if checkpoint is not None:
        raise InputError("--checkpoint and --model both name a model: give only one of them")
    classes, channels = shape_of(run)
    model = load_source(
        source,
        weights=where["weights"],
        num_classes=classes,
        in_channels=channels,
        normalization=normalization(where["preset"], where["mean"], where["std"]),
    )
    return model, source_name(source, where["weights"])


def shape_of(run: Path) -> tuple[int, int]:
    """Return the number of classes, and of channels of the saved images, in ``run``."""
    from ..results.images import read_images
    from ..results.stored import read_evaluation

    images = next(read_images(run))
    return int(read_evaluation(run).configuration["classes"]), images.float32.shape[1]


def score_table(found: Score) -> Table:
    """Return a table of the accuracy on exact and rounded images, and of the success of a targeted attack."""
    own = " (the same weights)" if found.same_weights else ""
    title = Text(f"{found.model} on {found.accuracy.n} adversarial images made for {found.made_for}{own}, in %")
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("accuracy", "after rounding to 256 levels", *["targets reached"] * (found.success is not None)):
        table.add_column(heading, justify="right")
    shares = [found.accuracy, found.rounded, *[found.success] * (found.success is not None)]
    table.add_row(*map(str, shares))
    return table


@click.command(cls=GroupedCommand)
@click.argument("runs", nargs=-1, required=True, type=_PATH)
@of_work("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@threads_option(of_work)
@json_option(of_work)
def transfer(runs: tuple[Path, ...], device: str, threads: int | None, json_file: Path | None) -> None:
    """Print the accuracy of every model on the adversarial images of every other, without a new attack.

    RUNS are folders that `robust-lr attack --save-images` wrote for several models on the same images.
    """
    from ..evaluation.score import check_runs
    from ..evaluation.score import transfer as judge
    from ..results.stored import read_evaluation
    from ..utils.devices import pick_device
    from ..utils.files import check_writable
    from .model_record import load_recorded_model
    from .terminal import write_record

    check_writable(json_file=json_file)
    use_threads(threads)
    evaluations = [read_evaluation(run) for run in runs]
    check_runs(evaluations)
    names = [evaluation.record["model"] for evaluation in evaluations]
    if len(set(names)) < len(names):
        names = [f"{name} ({run})" for name, run in zip(names, runs, strict=True)]
    models = {
        name: load_recorded_model(run, *shape_of(run)).to(pick_device(device))
        for name, run in zip(names, runs, strict=True)
    }
    found = judge(runs, models)
    console.print(transfer_table(found))
    say("rows: the model that was attacked; columns: the model that classifies the images")
    if json_file is not None:
        write_record(json_file, found.to_dict())


def transfer_table(found: Transfer) -> Table:
    """Return a table with one row per attacked model and one column per model that classifies the images."""
    n = found.scores[0][0].accuracy.n
    table = Table(title=Text(f"accuracy in % on {n} adversarial images"), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("made for", overflow="fold")
    for name in found.names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for name, row in zip(found.names, found.scores, strict=True):
        table.add_row(Text(name), *(str(score.accuracy) for score in row))
    return table
