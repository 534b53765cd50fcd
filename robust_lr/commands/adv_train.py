"""``robust-lr adv-train``: train a network in a run folder, alone or as one of torchrun's processes."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..utils.errors import InputError
from .completion import complete
from .progress import progress_bars
from .terminal import count_of, say, set_option, use_threads

if TYPE_CHECKING:
    from ..config.training import Config

log = logging.getLogger(__name__)

DEFAULT_CONFIG = "lrnet26_fashion_mnist_mini"


@click.command("adv-train")
@click.argument("config", required=False, metavar="[CONFIG]", shell_complete=complete("configs"))
@set_option("train.epochs=3")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/CONFIG]")
@click.option("--resume", is_flag=True, help="Continue a run with its own config: `adv-train --resume RUN`.")
@click.option("--fresh", is_flag=True, help="Start over, and delete the run in the folder.")
@click.option("--dry-run", is_flag=True, help="Check everything and print what would run; train and write nothing.")
def adv_train(
    config: str | None, overrides: tuple[str, ...], out: Path | None, resume: bool, fresh: bool, dry_run: bool
) -> None:
    """Train a network adversarially. CONFIG is a TOML file, or the name of a config that ships with the package.

    The run folder gets the resolved config, metrics (JSON lines), weights (safetensors) and provenance.

    \b
    robust-lr adv-train --set recipe=madry                        another recipe; see `robust-lr list`
    robust-lr adv-train --resume runs/mine                        continue an interrupted run
    torchrun --nproc-per-node 2 -m robust_lr adv-train CONFIG     two processes, one batch
    """
    from ..config.advice import give_advice
    from ..training.run import prepare, train_run
    from ..training.run_folder import clear_folder
    from ..training.watch import Latest
    from ..utils.files import check_writable_folder

    if resume and fresh:
        raise InputError("--resume continues a run and --fresh deletes it: give only one of them")
    settings, folder = (
        configure_resumed_run(config, overrides, out) if resume else configure_new_run(config, overrides, out)
    )
    if not folder.is_file():
        check_writable_folder(out=folder)
    use_threads(settings.train.threads)
    first = int(os.environ.get("RANK", 0)) == 0
    if dry_run:
        describe(settings, folder, resume)
        return
    ready = prepare(settings, int(os.environ.get("WORLD_SIZE", 1)))
    for line in give_advice(settings, ready.train.image_shape) if first and not resume else ():
        log.warning("warning: %s", line)
    if fresh and first:
        clear_folder(settings, folder)
    run = train_run(settings, folder, resume=resume or fresh)
    if not first:
        for _ in run:
            pass
        return
    latest = Latest()
    with progress_bars() as bars:
        task = bars.add("starting", total=None)
        for step in run:
            latest = latest.add_step(step)
            bars.update(task, completed=step.step, total=step.steps, description=latest.describe())
            if step.test_accuracy is not None:
                bars.say(latest.epoch_words())
    if latest.step is None:
        say(f"{folder} is already finished.")
    else:
        say(f"Trained {settings.model['name']} for {latest.step.epoch:g} epochs: {folder}")
    say(f"Attack it with: robust-lr attack {attack_advice(settings)} --checkpoint {shlex.quote(str(folder))}")


def configure_new_run(config: str | None, overrides: tuple[str, ...], out: Path | None) -> tuple[Config, Path]:
    """Return the config and the folder of a new run."""
    from ..config.training import load

    name = config or DEFAULT_CONFIG
    return load(name, overrides), out or Path("runs") / Path(name).stem


def configure_resumed_run(config: str | None, overrides: tuple[str, ...], out: Path | None) -> tuple[Config, Path]:
    """Return the config and the folder of a run to resume; the folder is CONFIG, --out, or the default of a new run.

    Raises:
        InputError: the folder does not hold a run.
    """
    from ..config.training import from_dict, load, set_values
    from ..training.run_folder import CONFIG
    from ..utils.toml import read_toml

    named = config is not None and Path(config).is_dir()
    if named and out is not None:
        raise InputError(f"two folders to resume: give either {config} or --out {out}")
    folder = Path(config or "") if named else out or Path("runs") / Path(config or DEFAULT_CONFIG).stem
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} holds no run to resume: give the folder of a run, or leave out --resume")
    if config is not None and not named:
        return load(config, overrides), folder
    table = read_toml(folder / CONFIG)
    set_values(table, overrides)
    return from_dict(table), folder


def describe(settings: Config, folder: Path, resume: bool) -> None:
    """Print the config of a run, and the number of images and steps."""
    from ..config.training import to_toml
    from ..training.run import prepare

    ready = prepare(settings, int(os.environ.get("WORLD_SIZE", 1)))
    steps = settings.train.epochs * (len(ready.train) // settings.train.batch_size)
    say(to_toml(settings))
    counts = {"training image": len(ready.train), "step": steps, "test image": len(ready.test)}
    say(f"# {', '.join(count_of(number, noun) for noun, number in counts.items())}")
    say(f"# {'resume' if resume else 'run'} folder: {folder}; nothing was trained or written (--dry-run)")


def attack_advice(config: Config) -> str:
    """Return the options of ``robust-lr attack`` that match the attack in training."""
    eps = config.attack.eps
    if config.attack.steps and config.attack.norm == "linf" and abs(eps - 8 / 255) < 1e-9:
        return "--protocol madry-cifar10"
    if not config.attack.steps or config.attack.norm != "linf" or abs(eps - 16 / 255) < 1e-9:
        return "--targeted" if config.attack.targeted or not config.attack.steps else "--untargeted"
    return f"--untargeted --eps {eps * 255:g}/255"
