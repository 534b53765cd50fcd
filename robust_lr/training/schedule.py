"""Schedules of the learning rate and of the attack's strength over the steps of a training run."""

from __future__ import annotations

from ..config.sections import TrainConfig


def peak_rate(train: TrainConfig) -> float:
    """Return the peak learning rate, scaled to the batch size if ``train.lr_images`` is set."""
    return train.lr * train.batch_size / train.lr_images if train.lr_images else train.lr


def learning_rate(train: TrainConfig, step: int, per_epoch: int) -> float:
    """Return the learning rate of ``step``: linear warmup to the peak, then decay by ``train.schedule``.

    "steps" divides the rate by 10 at each milestone (paper appendix). "linear" decays it to zero, which it would reach
    one step after the last (Li et al. 2020).

    Args:
        step: index of the step, from 0.
        per_epoch: number of steps per epoch.
    """
    peak, warmup, steps = peak_rate(train), train.warmup_epochs * per_epoch, train.epochs * per_epoch
    if step + 1 < warmup:
        return peak * (step + 1) / warmup
    if train.schedule == "linear":
        return peak * (steps - step) / (steps - max(0.0, warmup - 1))
    return peak * 0.1 ** sum(step >= milestone * per_epoch for milestone in train.milestones)


def attack_scale(train: TrainConfig, step: int, per_epoch: int) -> float:
    """Return the factor of eps and step size at ``step`` (from 0): it grows linearly to 1, then stays there."""
    warmup = train.eps_warmup_epochs * per_epoch
    return (step + 1) / warmup if step + 1 < warmup else 1.0
