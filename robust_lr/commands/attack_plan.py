"""The plan of ``robust-lr attack``: the model, the images, the protocol, and the folder of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .attack_options import AttackOptions
from .options import Choice, checkpoint_name, choose
from .terminal import count_of, say

if TYPE_CHECKING:
    from torch import nn

    from ..protocols import Sweep
    from ..protocols.base import Protocol
    from ..results.targets import Targets


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One evaluation as the options describe it, with the folders for its result.

    Attributes:
        settings: the protocol or sweep.
        choice: the model and the images.
        model_values: arguments of the model, from --set.
        surrogate: the network that lends its gradients, if any.
        targets: target classes from a file, if any.
        shard: part of the images, (index, number).
        whole: folder of the evaluation of all images.
        folder: folder of this shard, or ``whole``.
        file: name of the file with the result.
        shows_progress: False in all processes of torchrun but the first.
    """

    settings: Protocol | Sweep
    choice: Choice
    model_values: Mapping[str, Any]
    surrogate: nn.Module | None
    targets: Targets | None
    shard: tuple[int, int] | None
    whole: Path
    folder: Path
    file: str
    shows_progress: bool

    def arguments(self, options: AttackOptions) -> dict[str, Any]:
        """Return the arguments that ``evaluate``, ``sweep`` and ``attack_all_targets`` share."""
        return {
            "seed": options.seed,
            "batch_size": options.batch_size,
            "compute_batch": options.compute_batch,
            "out": self.folder,
            "resume": True,
            "fresh": options.fresh,
            "images": options.save_images,
            "name": self.choice.name,
            "workers": options.workers,
            "processes": options.processes,
            "precision": options.precision,
            "allow": options.allow,
            "verdict_passes": options.verdict_passes,
            "surrogate": self.surrogate,
            "check": options.check,
        }


def make_plan(
    options: AttackOptions,
    settings: Protocol | Sweep,
    model_values: Mapping[str, Any],
    launched: tuple[int, int] | None,
) -> Plan:
    """Load the model, the images and the targets, and name the folders."""
    from ..protocols import Sweep
    from ..results.curve import CURVE
    from ..results.shards import parse_shard, shard_folder
    from ..results.stored import RESULT
    from ..results.target_matrix import MATRIX
    from ..results.targets import load_targets
    from ..utils.devices import device_of_process

    shard = launched or (None if options.shard_text is None else parse_shard(options.shard_text))
    targets = None if options.targets_file is None else load_targets(options.targets_file)
    choice = choose(**options.where, device=device_of_process(options.device), options=model_values)
    surrogate = None if options.surrogate_source is None else load_surrogate(options.surrogate_source, choice)
    name = settings.name if surrogate is None else f"{settings.name},surrogate={surrogate.name}"
    name += ",all-targets" if options.all_targets else ""
    whole = choice.folder / "attacks" / name if options.out is None else options.out
    is_whole = shard is None or (options.out is not None and launched is None)
    return Plan(
        settings=settings,
        choice=choice,
        model_values=model_values,
        surrogate=surrogate,
        targets=targets,
        shard=shard,
        whole=whole,
        folder=whole if shard is None or is_whole else shard_folder(whole, shard),
        file=CURVE if isinstance(settings, Sweep) else MATRIX if options.all_targets else RESULT,
        shows_progress=launched is None or launched[0] == 1,
    )


def load_surrogate(source: str, choice: Choice) -> nn.Module:
    """Load the network of --surrogate onto the device of the model, and set its ``name``."""
    from ..models.checkpoint import load_model
    from ..models.external import load_source, source_name
    from ..utils.contexts import device_of

    model: nn.Module
    if Path(source).exists():
        model, name = load_model(Path(source)), checkpoint_name(Path(source))
    else:
        model = load_source(source, num_classes=choice.data.num_classes, in_channels=choice.data.image_shape[0])
        name = source_name(source)
    model.name = name  # type: ignore[assignment]
    return model.to(device_of(choice.model))


def describe(plan: Plan, *, fresh: bool) -> None:
    """Print the model, images, protocol and folder of an evaluation."""
    choice, finished = plan.choice, (plan.folder / plan.file).exists() and not fresh
    say(f"model      {choice.name} on {next(choice.model.parameters()).device}")
    say(f"images     {count_of(len(choice.data), 'image')} of {choice.data.name}")
    say(f"protocol   {plan.settings.name}: {plan.settings}")
    say(f"folder     {plan.folder}{', already finished' if finished else ''}")
    say("nothing was attacked or written (--dry-run)")
