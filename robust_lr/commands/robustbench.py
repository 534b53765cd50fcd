"""``robust-lr robustbench``: write an evaluation as an entry of RobustBench's leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .terminal import console, say


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON here.  [default: print it]")
@click.option("--link", default="", help="Address of the paper.")
@click.option("--name", default="", help="Title of the paper.")
@click.option("--authors", default="", help="Authors, separated by commas.")
@click.option("--venue", default="", help="Venue of the paper, e.g. 'NeurIPS 2026'.")
@click.option("--architecture", default="", help="Network, e.g. ResNet-50.  [default: the evaluation's name]")
@click.option("--dataset", default="", help="cifar10, cifar100 or imagenet.  [default: the evaluation's]")
@click.option("--additional-data", is_flag=True, help="The network was trained with additional data.")
@click.option("--forward-passes", type=click.IntRange(1), default=1, show_default=True, help="Passes per prediction.")
@click.option("--reported", help="Robust accuracy in the paper, in percent.  [default: the measured one]")
@click.option("--allow", type=click.Choice(["misled"]), help="Write the entry even if its verdict is misled.")
def robustbench(
    run: Path, out: Path | None, forward_passes: int, reported: str | None, allow: str | None, **about: Any
) -> None:
    """Write the model_info JSON of the evaluation in folder RUN, for a submission to RobustBench."""
    from ..results.robustbench import find_reservations, model_info
    from ..results.stored import read_evaluation
    from ..utils.files import write_json

    evaluation = read_evaluation(run)
    about["architecture"] = about["architecture"] or evaluation.record["model"]
    about["dataset"] = about["dataset"] or evaluation.record["data"]
    about["allow_misled"] = allow is not None
    info = model_info(evaluation, number_forward_passes=forward_passes, reported=reported, **about)
    if out is None:
        click.echo(json.dumps(info, indent=2))
    else:
        write_json(out, info)
        say(f"written to {out}")
    for reservation in find_reservations(evaluation, about["dataset"]):
        console.print(f"not ready to submit: {reservation}")
    if missing := [key for key in ("link", "name", "authors", "venue") if not info[key]]:
        console.print(f"still empty: {', '.join(missing)}; the submission form asks for them")
