"""``robust-lr plan``: estimate how long a run will take."""

from __future__ import annotations

import click

from .terminal import say, set_option, use_threads


def format_hours(hours: float) -> str:
    """Format a duration in minutes, hours or days."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


@click.command()
@click.argument("config", default="imagenet/lrnet26_adv")
@set_option("train.epochs=3")
@click.option(
    "--processes",
    type=int,
    default=1,
    show_default=True,
    help="Processes of the planned run, one for each GPU.",
    metavar="N",
)
@click.option(
    "--images",
    type=int,
    default=0,
    metavar="N",
    help="Images per measured step.  [default: one process's share; on a CPU, 4 of 224 x 224]",
)
@click.option("--steps", type=int, default=3, show_default=True, help="Number of steps to measure.", metavar="N")
def plan(config: str, overrides: tuple[str, ...], processes: int, images: int, steps: int) -> None:
    """Estimate the duration of a training run or a whole table from a few training steps on this machine.

    The images are random, so the data need not be present. Run it on a machine with one of the GPUs that you will use.
    For the config of a table, such as table9 or table9/gpu, the estimate covers all training runs and attacks.
    """
    from .. import config as config_room
    from ..config.training import holds_rows
    from ..training.plan import plan as measure

    if holds_rows(config):
        plan_rows(config, overrides, processes=processes, images=images, steps=steps)
        return
    settings = config_room.load(config, overrides)
    use_threads(settings.train.threads)
    found = measure(settings, processes=processes, images=images, steps=steps)
    say(f"{settings.model['name']}, {settings.attack}")
    precision = f"{settings.compute.precision}, attack {settings.compute.attack_precision}"
    say(
        f"measured: {found.images_per_second:.3g} images/s on {found.device} ({precision}; {found.images} images "
        f"per step, {found.seconds:.3g} s), peak memory {found.memory / 2**30:.2f} GiB"
    )
    say(
        f"planned: {found.epochs} epochs of {found.epoch_images:,} images on {found.processes} such "
        f"device{'s' if found.processes > 1 else ''}: {format_hours(found.hours)}"
    )
    say("assumed:")
    for line in found.assumptions():
        say(f"  {line}")


def plan_rows(config: str, overrides: tuple[str, ...], *, processes: int, images: int, steps: int) -> None:
    """Measure every network of a table and print the estimate."""
    from ..paper.plan import plan_table, total_hours
    from ..paper.tables import read

    table = read(config, overrides)
    plans = plan_table(table, processes=processes, images=images, steps=steps)
    for each in plans:
        say(
            f"{each.label}, {each.regime}: {each.training.images_per_second:.3g} images/s, {each.runs} training "
            f"run{'s' if each.runs > 1 else ''} of {format_hours(each.training.hours)}, attacks at most "
            f"{format_hours(each.evaluation)}"
        )
    say(
        f"planned: {format_hours(total_hours(plans))} in all on {plans[0].training.device}, one network after the other"
    )
    say("assumed:")
    for line in dict.fromkeys(line for each in plans for line in each.training.assumptions()):
        say(f"  {line}")
