"""``robust-lr plan``: how long a run will take."""

from __future__ import annotations

import click

from .terminal import say, set_option, use_threads


def span(hours: float) -> str:
    """A time in the unit that people would use for it."""
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
    help="Images of a measured step.  [default: one process's share; on a CPU 4 of 224 x 224]",
)
@click.option("--steps", type=int, default=3, show_default=True, help="Steps that are measured.", metavar="N")
def plan(config: str, overrides: tuple[str, ...], processes: int, images: int, steps: int) -> None:
    """How long a training run would take. A few steps of CONFIG are measured on this machine.

    Images are random, so the data need not be here. Run it on a machine with one of the GPUs that you will use.
    """
    from .. import config as config_room
    from ..training.plan import plan as measure

    settings = config_room.load(config, overrides)
    use_threads(settings.train.threads)
    found = measure(settings, processes=processes, images=images, steps=steps)
    precision = f"{settings.compute.precision}, attack {settings.compute.attack_precision}"
    say(f"{settings.model['name']}, {settings.attack}")
    say(
        f"measured: {found.images_per_second:.3g} images/s on {found.device} ({precision}; {found.images} images a "
        f"step, {found.seconds:.3g} s), {found.memory / 2**30:.2f} GiB at the peak"
    )
    time = span(found.hours)
    say(
        f"planned: {found.epochs} epochs of {found.epoch_images:,} images on {found.processes} such "
        f"device{'s' if found.processes > 1 else ''}: {time}"
    )
    say("assumed:")
    for line in found.assumptions():
        say(f"  {line}")
