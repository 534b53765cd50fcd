"""``robust-lr adv-train``: one network, one run folder; under torchrun, one of its processes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from .progress import progress_bars
from .terminal import say, set_option, use_threads


@click.command("adv-train")
@click.argument("config", default="lrnet26_fashion_mnist_mini")
@set_option("train.epochs=3")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/CONFIG]")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder.")
def adv_train(config: str, overrides: tuple[str, ...], out: Path | None, resume: bool) -> None:
    """Train one network adversarially. CONFIG is a TOML file, or the name of one that ships.

    The run folder gets the config as resolved, metrics (JSON lines), weights (safetensors) and provenance.

    \b
    robust-lr adv-train --set recipe=madry                        another recipe; see `robust-lr list`
    torchrun --nproc-per-node 2 -m robust_lr adv-train CONFIG     two processes, one batch
    """
    from .. import config as config_room
    from ..training.run import train_run
    from ..training.watch import Latest

    settings = config_room.load(config, overrides)
    folder = out or Path("runs") / Path(config).stem
    use_threads(settings.train.threads)
    run = train_run(settings, folder, resume=resume)
    if int(os.environ.get("RANK", 0)) > 0:
        for _ in run:
            pass
        return
    latest = Latest()
    with progress_bars() as bars:
        task = bars.add("starting", total=None)
        for step in run:
            latest = latest.after(step)
            bars.update(task, completed=step.step, total=step.steps, description=latest.words())
            if step.test_accuracy is not None:
                bars.say(latest.epoch_words())
    if latest.step is None:
        say(f"{folder} is finished already.")
    else:
        say(f"Trained {settings.model['name']} for {latest.step.epoch:g} epochs: {folder}")
    say(f"Attack it with: robust-lr attack --targeted --checkpoint {shlex.quote(str(folder))}")
