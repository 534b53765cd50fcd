"""Schedules over the steps of a training run: the learning rate and the strength of the attack."""

from __future__ import annotations

from ..config.sections import TrainConfig


def peak_rate(train: TrainConfig) -> float:
    """Return the highest learning rate of the schedule, scaled to the batch if asked for."""
    return train.lr * train.batch_size / train.lr_images if train.lr_images else train.lr


def learning_rate(train: TrainConfig, step: int, per_epoch: int) -> float:
    """Return the rate of a step, counted from 0: linear warm-up to the peak, then as ``train.schedule`` says.

    "steps" takes a tenth after each milestone (paper appendix). "linear" falls to zero, which it would reach one step
    after the last (Li et al. 2020).
    """
    peak, warmup, steps = peak_rate(train), train.warmup_epochs * per_epoch, train.epochs * per_epoch
    if step + 1 < warmup:
        return peak * (step + 1) / warmup
    if train.schedule == "linear":
        return peak * (steps - step) / (steps - max(0.0, warmup - 1))
    return peak * 0.1 ** sum(step >= milestone * per_epoch for milestone in train.milestones)


def attack_scale(train: TrainConfig, step: int, per_epoch: int) -> float:
    """Return the factor of eps and step size, which rises linearly to 1; steps count from 0."""
    warmup = train.eps_warmup_epochs * per_epoch
    return (step + 1) / warmup if step + 1 < warmup else 1.0
