"""Accuracy while a network trains: on clean images, and on attacked ones that were held out."""

from __future__ import annotations

import torch
from torch import nn

from .config import Config
from .contexts import fp32, frozen
from .dataset import Dataset
from .distributed import Group
from .errors import RunError
from .loader import batches
from .perturb import attackable, goals, perturb
from .protocols import PGD, pgd


def protocol(config: Config) -> PGD:
    """What the held-out images are attacked with, see ``ValidationConfig.protocol``."""
    if config.validation.protocol is not None:
        return pgd(config.validation.protocol)
    eps = config.attack.eps
    return PGD(name="validation", eps=eps, step_size=eps / 4, steps=10 if eps else 0, source="ours, see the config")


def accuracy(
    model: nn.Module,
    data: Dataset,
    attack: PGD | None = None,
    *,
    seed: int = 0,
    batch_size: int = 200,
    workers: int = 0,
    skip: bool = False,
    group: Group | None = None,
) -> float:
    """Accuracy in eval mode, a fraction; each process of ``group`` takes its share of the images.

    Args:
        model: pixels in [0, 1] -> logits; its mode and flags are afterwards as before.
        attack: in fp32, with starts and targets keyed by (seed, image id); by default the images are clean.
        skip: leave out images that cannot be read, see ``loader.stream``; the fraction is of the others.

    Raises:
        InputError: an image cannot be read.
        RunError: none can, or a worker died.
    """
    group = group or Group()
    device = next(model.parameters()).device
    counts = torch.zeros(2, dtype=torch.int64, device=device)  # right, seen
    order = torch.split(group.share(torch.arange(len(data))), batch_size)
    with frozen(model), torch.no_grad():
        attacked = model if attack is None else attackable(model)
        for x, y, ids in batches(data, order, workers=workers, skip=skip):
            x, y, ids = x.to(device), y.to(device), ids.to(device)
            if attack is not None:
                with fp32(device):
                    aims = goals(attack, attacked, x, y, ids, data.num_classes, seed=seed)
                    x = perturb(attack, attacked, x, y, aims, ids, seed=seed)
            counts[0] += (model(x).argmax(1) == y).sum()
            counts[1] += len(y)
    right, seen = group.sum(counts).tolist()
    if not seen:
        raise group.one_voice(RunError(f"{data.name}: none of the {len(data)} images can be read"))
    return float(right / seen)
