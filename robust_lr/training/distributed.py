"""Distributed training under torchrun: process groups, collective operations and data-parallel networks.

The backend of torch.distributed is gloo on CPUs and NCCL on GPUs. A single process is a group of size one, without any
communication.
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


#: timeout of collective operations: others wait while the first process hashes the data or builds kernels
MAX_WAIT = timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """The group of processes that train together, from the view of one of them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        device: device of this process, which holds the tensors that are exchanged.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    def share(self, items: Tensor) -> Tensor:
        """Return this process's contiguous part of ``items``; the sizes of the parts differ by at most one."""
        return items.tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """Sum ``values`` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def total(self, value: int) -> int:
        """Return the sum of the processes' numbers."""
        return int(self.sum(torch.tensor(value, device=self.device))) if self.size > 1 else value

    def maximum(self, value: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def run_on_all(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in every process and return this process's result.

        If it fails in any process, all processes end, because the others would wait for the failed one, with NCCL on
        several machines for a long time. The failed process of lowest rank raises its error; the others exit silently.
        """
        if self.size == 1:
            return work()
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:  # whatever the error, the other processes must not wait
            failure = error
        code = 0 if failure is None else 2 if isinstance(failure, InputError) else 1
        worst = self.maximum((self.size - self.rank) * 4 + code if code else 0)
        if not worst:
            return result
        is_first = failure is not None and worst // 4 == self.size - self.rank
        raise failure if failure is not None and is_first else SystemExit(worst % 4)

    def run_on_first(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in the first process and return its result in every process; if it fails, all processes end."""
        box: list[Any] = [self.run_on_all(lambda: work() if self.rank == 0 else None)]
        if self.size > 1:
            dist.broadcast_object_list(box, device=self.device)
        result: Result = box[0]
        return result

    def agrees_on(self, digest: str) -> bool:
        """Return True if all processes have the same ``digest``, a string of hexadecimal digits."""
        number = int(digest[:15], 16)  # 60 bits
        return self.maximum(number) == -self.maximum(-number)

    def error_of_rank(self, error: Exception, code: int = 1) -> BaseException:
        """Return the exception for an error in all processes: ``error`` in the first, a silent exit in the others."""
        return error if self.rank == 0 else SystemExit(code)


@contextmanager
def join_group(device: torch.device) -> Iterator[Group]:
    """Join the process group that the caller or torchrun set up; without one, the group is this process alone.

    Raises:
        RunError: another process died, so this one cannot continue.
    """
    ours = not dist.is_initialized() and under_torchrun()
    if ours:
        nccl = device.type == "cuda"
        dist.init_process_group("nccl" if nccl else "gloo", device_id=device if nccl else None, timeout=MAX_WAIT)
    group = Group(dist.get_rank(), dist.get_world_size(), device) if dist.is_initialized() else Group(device=device)
    all_end = True  # False if only this process fails: destroying an NCCL group would then wait forever
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
            f"process {group.rank} of {group.size} lost contact with the others: one of them died or was killed; "
            "the saved states are kept, continue with `resume`"
        ) from error
    finally:
        if ours and all_end:
            dist.destroy_process_group()
            gc.collect()  # DDP's reference cycles hold the group; Python aborts if gloo's threads outlive it


def distribute(model: nn.Module, group: Group, *, synchronize: bool, compiled: str = "off") -> nn.Module:
    """Wrap ``model`` for training in ``group``, whose processes average their gradients.

    The result shares the parameters and buffers of ``model``.

    Args:
        synchronize: compute batch norm over the images of all processes instead of each process separately.
        compiled: "off", or a mode of torch.compile.
    """
    network = synchronize_batch_norms(model) if synchronize and group.size > 1 else model
    if compiled != "off":
        network = torch.compile(network, mode=compiled)  # type: ignore[assignment]
    if group.size == 1:
        return network
    # PyTorch 2.15 renamed the option. Running statistics are averaged after each step instead, see `average_buffers`.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(network, **options)


def settle_buckets(network: nn.Module, model: nn.Module, x: Tensor) -> None:
    """Make DDP arrange its buckets now, by a forward and backward pass on ``x`` that leaves ``model`` unchanged.

    DDP rearranges its buckets once, after the first backward pass, and the sums of three or more gradients are then
    rounded differently. Without this pass, a resumed run would differ from an uninterrupted one.
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
    """Accumulate gradients without averaging them over processes, ``when`` a micro-batch is not the step's last."""
    return network.no_sync() if when and isinstance(network, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def average_buffers(model: nn.Module, group: Group) -> None:
    """Average the running statistics of unsynchronized batch norms, so that all processes attack the same network.

    DDP would copy the statistics of the first process; their mean reflects the images of all processes (ours).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    # leave out constants, such as the pixels' mean: averaging would round them
    buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
    if group.size == 1 or not buffers:
        return
    flat = group.sum(torch.cat([buffer.flatten() for buffer in buffers])) / group.size
    for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
