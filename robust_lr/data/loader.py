"""Load batches in a given order, in this process or in worker processes."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.utils.data
from torch import Tensor

from ..utils.devices import CPU, STOPPING
from ..utils.errors import InputError, RunError
from ..utils.machine import check_processes
from ..utils.rng import AUGMENT, ORDER, words
from .dataset import Batch, Dataset, to_unit_range
from .encoded import stack_images

log = logging.getLogger(__name__)

#: positions of a batch in the data set, int64 [n], and the epoch
Order = tuple[Tensor, int]
#: a batch, and the error messages for images that were left out
Loaded = tuple[Tensor, Tensor, Tensor, list[str]]


@dataclass(frozen=True, eq=False)
class Batches(torch.utils.data.Dataset[Loaded | InputError]):
    """A data set whose items are raw batches of ``data``, because uint8 is a quarter of float32 to send to a process.

    If an image cannot be read, the item is the error instead of a batch, because PyTorch would wrap an error raised in
    a worker in a traceback. With ``skip``, the image is left out of the batch instead. With ``seed``, PyTorch's
    generator is seeded with (seed, epoch, image id) before an image is decoded, so that random transforms give the same
    result in any worker and any order.
    """

    data: Dataset
    seed: int | None = None
    skip: bool = False

    def __getitem__(self, item: Order) -> Loaded | InputError:
        positions, epoch = item
        try:
            batch = self.data.raw(positions) if self.seed is None else self._load_keyed(positions, epoch, self.seed)
        except InputError as error:
            return self._load_readable(positions, epoch) if self.skip else error
        return *batch, []

    def _load_keyed(self, positions: Tensor, epoch: int, seed: int) -> Batch:
        keys = words(seed, AUGMENT, self.data.ids[positions], 1, draw=epoch)[:, 0].tolist()
        items = []
        with torch.random.fork_rng(devices=[]):
            for position, key in zip(torch.split(positions, 1), keys, strict=True):
                torch.manual_seed(key)
                items.append(self.data.raw(position))
        return concatenate(items, self.data)

    def _load_readable(self, positions: Tensor, epoch: int) -> Loaded:
        """Load a batch without the images that cannot be read."""
        single = Batches(self.data, self.seed)
        found: list[Batch] = []
        problems = []
        for position in torch.split(positions, 1):
            one = single[position, epoch]
            if isinstance(one, InputError):
                problems.append(str(one))
            else:
                found.append(one[:3])
        return *concatenate(found, self.data), problems


def concatenate(items: Sequence[Batch], data: Dataset) -> Batch:
    """Concatenate batches of one image each; the result may be empty."""
    if not items:
        return torch.empty(0, *data.image_shape), data.labels[:0], data.ids[:0]
    images, labels, ids = zip(*items, strict=True)
    return stack_images([image[0] for image in images]), torch.cat(labels), torch.cat(ids)


def batches(
    data: Dataset, order: Iterable[Tensor], *, workers: int = 0, skip: bool = False, device: torch.device = CPU
) -> Iterator[Batch]:
    """Yield the batch of ``data`` for each tensor of positions in ``order``; empty batches are left out.

    Args:
        workers: number of processes that load batches ahead of time; 0 loads in this process.
        skip, device: as in ``stream``.

    Raises:
        InputError: an image cannot be read and ``skip`` is False.
        RunError: a worker died.
    """
    some = ((positions, 0) for positions in order if len(positions))  # an empty list of images cannot be stacked
    return (batch for batch in stream(data, some, workers=workers, skip=skip, device=device) if len(batch[1]))


def stream(
    data: Dataset,
    orders: Iterable[Order],
    *,
    workers: int = 0,
    seed: int | None = None,
    skip: bool = False,
    device: torch.device = CPU,
) -> Iterator[Batch]:
    """Yield the batches of ``data`` at ``orders``, which may span epochs; workers persist and load ahead.

    Args:
        workers: as in ``batches``.
        seed: seed of random transforms, which are keyed by (seed, epoch, image id); None leaves the generator alone.
        skip: leave out images that cannot be read, with a warning that names them, instead of raising an error.
        device: device that batches are moved to, and where pixels become float32.

    Raises:
        InputError, RunError: as in ``batches``.
    """
    source = Batches(data, seed, skip)
    made: Iterable[Loaded | InputError] = (source[item] for item in orders)
    for batch in from_workers(source, orders, workers, device) if workers else made:
        if isinstance(batch, InputError):
            raise batch
        *found, problems = batch
        for problem in problems:
            log.warning("skipped: %s", problem)
        images, labels, ids = (column.to(device, non_blocking=True) for column in found)
        yield to_unit_range(images), labels, ids


def from_workers(
    source: Batches, orders: Iterable[Order], workers: int, device: torch.device
) -> Iterator[Loaded | InputError]:
    """Yield the items of ``source`` at ``orders``, loaded ahead by ``workers`` processes; pinned memory for a GPU."""
    check_processes(workers=workers)
    try:
        yield from torch.utils.data.DataLoader(
            source,
            batch_size=None,
            sampler=orders,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_stop_signals,
            generator=torch.Generator(),  # otherwise PyTorch's default generator would advance
        )
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"a process that loads images failed, killed or out of memory: {reason}; try fewer `workers`"
        ) from error


def ignore_stop_signals(worker: int) -> None:
    """Make a worker ignore stop signals, which torchrun and Ctrl-C send to the whole process group.

    The training process still needs its workers for the last step; they end when it does.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def shuffle_positions(data: Dataset, batch_size: int, *, seed: int, epoch: int) -> list[Tensor]:
    """Return an epoch's full batches of positions, shuffled by (seed, epoch, ids); an incomplete batch is dropped."""
    order = words(seed, ORDER, data.ids, 1, draw=epoch)[:, 0].argsort(stable=True)
    return list(torch.split(order[: len(order) // batch_size * batch_size], batch_size))
