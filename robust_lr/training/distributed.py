"""Training in several processes, which torchrun starts: who does what, sums over all, one network in each.

The engine is torch.distributed: gloo on CPUs, NCCL on GPUs. A process alone is a group of one, and pays nothing.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..utils.devices import CPU, under_torchrun
from ..utils.errors import InputError, RunError
from .sync_batchnorm import synchronize_batch_norms

Result = TypeVar("Result")


#: longest wait for the slowest process: the first one hashes the data, or builds kernels, before training begins
MAX_WAIT = timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them.

    Attributes:
        rank, size: number of this process, from 0, and how many there are.
        device: of this process; what is exchanged lies there.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    def share(self, items: Tensor) -> Tensor:
        """Return this process's part of ``items``: consecutive ones, as many as the others have to within one."""
        return items.tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """Add up ``values`` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def total(self, value: int) -> int:
        """Add up one number over all processes."""
        return int(self.sum(torch.tensor(value, device=self.device))) if self.size > 1 else value

    def maximum(self, value: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def run_on_all(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in every process and return its result here.

        If it fails in any, all processes end, and the first that failed raises the error: the others would wait for it,
        with NCCL and several machines for a long time.
        """
        if self.size == 1:
            return work()
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:  # whatever it is, the others must not wait
            failure = error
        code = 0 if failure is None else 2 if isinstance(failure, InputError) else 1
        worst = self.maximum((self.size - self.rank) * 4 + code if code else 0)
        if not worst:
            return result
        is_first = failure is not None and worst // 4 == self.size - self.rank
        raise failure if failure is not None and is_first else SystemExit(worst % 4)

    def run_on_first(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in the first process and return its result in all; if it fails, all processes end."""
        box: list[Any] = [self.run_on_all(lambda: work() if self.rank == 0 else None)]
        if self.size > 1:
            dist.broadcast_object_list(box, device=self.device)
        result: Result = box[0]
        return result

    def agrees_on(self, digest: str) -> bool:
        """Check whether all processes have the same ``digest``, in hexadecimal digits."""
        number = int(digest[:15], 16)  # 60 bits
        return self.maximum(number) == -self.maximum(-number)

    def error_of_rank(self, error: Exception, code: int = 1) -> BaseException:
        """Return an error that all processes met: ``error`` in the first, a silent exit with ``code`` in the others."""
        return error if self.rank == 0 else SystemExit(code)


@contextmanager
def join_group(device: torch.device) -> Iterator[Group]:
    """Join the group that this process belongs to: torchrun's, the caller's, or one of its own.

    Raises:
        RunError: another process ended, so that this one cannot go on.
    """
    ours = not dist.is_initialized() and under_torchrun()
    if ours:
        nccl = device.type == "cuda"
        dist.init_process_group("nccl" if nccl else "gloo", device_id=device if nccl else None, timeout=MAX_WAIT)
    group = Group(dist.get_rank(), dist.get_world_size(), device) if dist.is_initialized() else Group(device=device)
    all_end = True  # an error on purpose is one of all processes: otherwise leaving NCCL would wait for ever
    try:
        yield group
    except (InputError, RunError, SystemExit):
        raise
    except BaseException as error:
        all_end = False
        lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if group.size == 1 or not lost:
            raise
        raise RunError(
            f"process {group.rank} of {group.size} lost the others: one of them died or was killed; "
            "what the run had saved is kept, `resume` goes on"
        ) from error
    finally:
        if ours and all_end:
            dist.destroy_process_group()
            gc.collect()  # DDP's cycles hold the group: gloo's threads must not outlive Python, which would abort


def distribute(model: nn.Module, group: Group, *, synchronize: bool, compiled: str = "off") -> nn.Module:
    """Prepare ``model`` for training in ``group``, whose processes average their gradients; parameters stay shared.

    Args:
        synchronize: compute batch norm over the images of all processes, not of each separately.
        compiled: "off", or a mode of torch.compile.
    """
    network = synchronize_batch_norms(model) if synchronize and group.size > 1 else model
    if compiled != "off":
        network = torch.compile(network, mode=compiled)  # type: ignore[assignment]
    if group.size == 1:
        return network
    # PyTorch 2.15 renamed it. Statistics are averaged after each step instead, see `average_buffers`.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(network, **options)


def settle_buckets(network: nn.Module, model: nn.Module, x: Tensor) -> None:
    """Let DDP arrange its buckets, by a forward and backward pass on ``x`` that leaves no trace in ``model``.

    It does so once, after its first backward pass, and sums of three or more gradients then round otherwise: a resumed
    run would differ from one that was not stopped.
    """
    if not isinstance(network, DistributedDataParallel):
        return
    before = [buffer.clone() for buffer in model.buffers()]
    nn.Module.train(network)
    torch.autograd.backward(network(x).sum())
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
    model.zero_grad()


def skip_gradient_averaging(network: nn.Module, when: bool) -> AbstractContextManager[None]:
    """Keep gradients in their process, as for all micro-batches of a step but the last."""
    return network.no_sync() if when and isinstance(network, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def average_buffers(model: nn.Module, group: Group) -> None:
    """Average the running statistics of local batch norms over the group, so that all attack the same network.

    DDP would copy those of the first process; the mean has seen all images (ours).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    # constants, such as the pixels' mean, are left alone: their mean over the group rounds otherwise
    buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
    if group.size == 1 or not buffers:
        return
    flat = group.sum(torch.cat([buffer.flatten() for buffer in buffers])) / group.size
    for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
