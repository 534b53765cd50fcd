"""Accuracy during training: on clean test images, and on held-out images under attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from ..config.training import Config
from ..data.dataset import Dataset
from ..data.loader import batches
from ..models.folding import make_attackable
from ..protocols.pgd import PGD
from ..protocols.presets import get_pgd
from ..utils.contexts import device_of, fp32, frozen
from ..utils.errors import RunError
from ..utils.processes import parallel, process_count
from ..utils.statistics import Proportion
from .distributed import Group


def validation_protocol(config: Config) -> PGD:
    """Return the protocol that attacks the held-out images, see ``ValidationConfig.protocol``."""
    if config.validation.protocol is not None:
        return get_pgd(config.validation.protocol)
    eps = config.attack.eps
    return PGD(name="validation", eps=eps, step_size=eps / 4, steps=10 if eps else 0, source="ours, see the config")


def accuracy(model: nn.Module, data: Dataset, attack: PGD | None = None, **options: Any) -> float:
    """Return the top-1 accuracy as a fraction; the arguments are those of ``top_k``."""
    share = top_k(model, data, (1,), attack, **options)[0].value
    assert share is not None
    return share


def top_k(
    model: nn.Module,
    data: Dataset,
    ks: Sequence[int],
    attack: PGD | None = None,
    *,
    seed: int = 0,
    batch_size: int = 100,
    workers: int = 0,
    skip: bool = False,
    group: Group | None = None,
) -> list[Proportion]:
    """Return for each k the share of images whose label is among the k largest logits, in eval mode and fp32.

    On a CPU, the images are divided among as many processes as PyTorch has threads.

    Args:
        model: maps pixels [N, C, H, W] in [0, 1] to logits. Its mode and flags are restored afterwards.
        attack: protocol of the attack; None leaves the images clean.
        seed: seed of the attack, whose starts and targets are keyed by (seed, image id).
        workers: processes that decode images.
        skip: leave out images that cannot be read, see ``loader.stream``, also from the denominator.
        group: processes that divide the images among them.

    Raises:
        InputError: an image cannot be read and ``skip`` is False.
        RunError: no image can be read, or a worker process died.
    """
    group, device = group or Group(), device_of(model)
    processes = process_count(None) if device.type == "cpu" else 0
    order = torch.split(group.share(torch.arange(len(data))), batch_size)

    def count(some: Iterator[Tensor]) -> Iterator[Tensor]:
        for x, y, ids in batches(data, some, workers=-(-workers // max(1, processes)), skip=skip, device=device):
            if attack is not None:
                goals = attack.goals(attacked, x, y, ids, data.num_classes, seed=seed)
                x = attack.perturb(attacked, x, y, goals, ids, seed=seed, end_at_cycles=True)
            hits = model(x).topk(max(ks)).indices == y[:, None]
            yield torch.stack([y.new_tensor(len(y)), *(hits[:, :k].sum() for k in ks)])

    def counted() -> Tensor:
        with closing(parallel(count, order, processes)) as parts:
            return sum(parts, torch.zeros(1 + len(ks), dtype=torch.int64, device=device))

    with frozen(model), fp32(device), torch.no_grad():
        attacked = model if attack is None else make_attackable(model)
        seen, *right = group.sum(group.run_on_all(counted)).tolist()
    if not seen:
        raise group.error_of_rank(RunError(f"{data.name}: none of the {len(data)} images can be read; check the files"))
    return [Proportion(count, seen) for count in right]
