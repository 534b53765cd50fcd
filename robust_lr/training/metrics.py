"""Metrics of a training step, and the error for a run that diverged."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import TrainConfig
from ..utils.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One step of training, over the images of all processes.

    Attributes:
        step, steps: number of steps done, and of the whole run.
        epoch: number of epochs done, fractional within an epoch.
        loss: mean loss over the batch, in train mode.
        accuracy: accuracy on the attacked batch in train mode, a fraction.
        lr: learning rate of this step.
        seconds: duration of this step, including the attack.
        waited: seconds spent waiting for images before the step.
        images: number of images in the batch.
        test_accuracy: accuracy on the clean test images, a fraction, after the last step of an epoch.
        validation_accuracy, robust_accuracy: accuracy on the held-out images, clean and attacked, fractions, after a
            validation.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    accuracy: float
    lr: float
    seconds: float
    waited: float
    images: int
    test_accuracy: float | None = None
    validation_accuracy: float | None = None
    robust_accuracy: float | None = None

    @property
    def ends_epoch(self) -> bool:
        """True after the last step of an epoch."""
        return self.epoch == int(self.epoch)


def divergence_error(what: str, step: int, steps: int, train: TrainConfig) -> RunError:
    """Return the error for a run in which ``what`` happened; it suggests a lower learning rate or a longer warmup."""
    return RunError(
        f"{what} at step {step} of {steps}: try a learning rate below train.lr = {train.lr} or a longer "
        f"train.warmup_epochs than {train.warmup_epochs:g}"
    )
