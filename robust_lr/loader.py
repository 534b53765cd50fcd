"""Batches in a given order, made in this process or in workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.utils.data
from torch import Tensor

from .dataset import Batch, Dataset
from .errors import InputError, RunError
from .rng import AUGMENT, ORDER, words


@dataclass(frozen=True, eq=False)
class Batches(torch.utils.data.Dataset[Batch | InputError]):
    """Item i is the batch of ``data`` at the positions ``order[i]``.

    An image that cannot be read gives the error instead of a batch: raised in a worker, it would arrive wrapped in a
    traceback. With ``seed``, PyTorch's generator is set for each image from (seed, epoch, image id) while it is
    decoded, so random transforms of files give the same picture in any worker and any order.
    """

    data: Dataset
    order: Sequence[Tensor]
    seed: int | None = None
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Batch | InputError:
        positions = self.order[index]
        try:
            return self.data.batch(positions) if self.seed is None else self._keyed(positions, self.seed)
        except InputError as error:
            return error

    def _keyed(self, positions: Tensor, seed: int) -> Batch:
        keys = words(seed, AUGMENT, self.data.ids[positions], 1, draw=self.epoch)[:, 0].tolist()
        items = []
        with torch.random.fork_rng(devices=[]):
            for position, key in zip(positions.tolist(), keys, strict=True):
                torch.manual_seed(key)
                items.append(self.data[position])
        images, labels, ids = zip(*items, strict=True)
        return torch.stack(images), torch.tensor(labels), torch.tensor(ids)


def batches(
    data: Dataset, order: Sequence[Tensor], *, workers: int = 0, seed: int | None = None, epoch: int = 0
) -> Iterator[Batch]:
    """The batches of ``data`` at each of ``order`` (tensors of positions); ``workers`` processes make them ahead.

    Raises:
        InputError: an image cannot be read.
        RunError: a worker died.
    """
    source = Batches(data, order, seed, epoch)
    made: Iterable[Batch | InputError] = (source[index] for index in range(len(source)))
    for batch in from_workers(source, workers) if workers else made:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def from_workers(source: Batches, workers: int) -> Iterator[Batch | InputError]:
    """The items of ``source``, made ahead by ``workers`` processes."""
    if workers < 0:
        raise InputError(f"workers = {workers}: must be at least 0")
    pin = torch.cuda.is_available()
    try:
        yield from torch.utils.data.DataLoader(source, batch_size=None, num_workers=workers, pin_memory=pin)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"a process that loads images failed, out of memory or killed: {reason}") from error


def shuffled(data: Dataset, batch_size: int, *, seed: int, epoch: int) -> list[Tensor]:
    """Positions of an epoch's full batches, in an order keyed by (seed, epoch, ids); an incomplete last is dropped."""
    order = words(seed, ORDER, data.ids, 1, draw=epoch)[:, 0].argsort(stable=True)
    return list(torch.split(order[: len(order) // batch_size * batch_size], batch_size))
