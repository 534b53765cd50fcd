"""Training in several processes, which torchrun starts: who does what, sums over all, one network in each.

The engine is torch.distributed: gloo on CPUs, NCCL on GPUs. A process alone is a group of one, and pays nothing.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError, RunError

Result = TypeVar("Result")

CPU = torch.device("cpu")


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
        """This process's part of ``items``: consecutive ones, as many as the others have, or one more or fewer."""
        return items.tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """``values`` of all processes, added up in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def total(self, value: int) -> int:
        """The sum of one number."""
        return int(self.sum(torch.tensor(value, device=self.device))) if self.size > 1 else value

    def largest(self, value: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def first(self, work: Callable[[], Result]) -> Result:
        """What the first process makes of ``work``, for all; if it fails, all end, and only the first says why."""
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = work()
            except (InputError, RunError) as error:
                box[1] = error
        dist.broadcast_object_list(box, device=self.device)
        if box[1] is not None:
            raise self.one_voice(box[1], 2 if isinstance(box[1], InputError) else 1)
        result: Result = box[0]
        return result

    def one_voice(self, error: Exception, code: int = 1) -> BaseException:
        """``error`` in the first process, a silent exit with ``code`` in the others: all met the same one."""
        return error if self.rank == 0 else SystemExit(code)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group that this process belongs to: torchrun's, one that the caller has initialized, or one of its own.

    Raises:
        RunError: another process ended, so that this one cannot go on.
    """
    ours = not dist.is_initialized() and under_torchrun()
    if ours:
        nccl = device.type == "cuda"
        dist.init_process_group("nccl" if nccl else "gloo", device_id=device if nccl else None)
    group = Group(dist.get_rank(), dist.get_world_size(), device) if dist.is_initialized() else Group(device=device)
    try:
        yield group
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if group.size == 1 or isinstance(error, RunError) or not lost:
            raise
        raise RunError(
            f"process {group.rank} of {group.size} lost the others: one of them died or was killed; "
            "what the run had saved is kept, --resume goes on"
        ) from error
    finally:
        if ours:
            dist.destroy_process_group()


def under_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_device(device: torch.device) -> torch.device:
    """``device``, or among several GPUs the one that torchrun gives to this process.

    Raises:
        InputError: more processes than GPUs.
    """
    number = int(os.environ.get("LOCAL_RANK", 0)) if under_torchrun() else 0
    if device.type != "cuda" or device.index is not None:
        return device
    if number >= torch.cuda.device_count():
        raise InputError(
            f"--nproc-per-node: process {number} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}; start one process a GPU"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def parallel(model: nn.Module, group: Group, *, synchronize: bool, compiled: str = "off") -> nn.Module:
    """``model`` for training in ``group``, with the same parameters and buffers: gradients are averaged over it.

    Args:
        synchronize: batch norm over the images of all processes, not of each.
        compiled: "off", or a mode of torch.compile.
    """
    network = synchronized(model) if synchronize and group.size > 1 else model
    if compiled != "off":
        network = torch.compile(network, mode=compiled)  # type: ignore[assignment]
    if group.size == 1:
        return network
    # PyTorch 2.15 renamed it. Statistics are averaged after each step instead, see `average_buffers`.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(network, **options)


def settle(network: nn.Module, model: nn.Module, x: Tensor) -> None:
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


def unsynchronized(network: nn.Module, when: bool) -> AbstractContextManager[None]:
    """Gradients stay in their process: for all micro-batches of a step but the last."""
    return network.no_sync() if when and isinstance(network, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def average_buffers(model: nn.Module, group: Group) -> None:
    """Running statistics of local batch norms, averaged over the group: every process attacks the same network.

    DDP would copy those of the first process (ours: the mean, which has seen all images).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    # constants, such as the pixels' mean, are left alone: their mean over the group rounds otherwise
    buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
    if group.size == 1 or not buffers:
        return
    flat = group.sum(torch.cat([buffer.flatten() for buffer in buffers])) / group.size
    for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def synchronized(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with synchronized batch norms; parameters and buffers are the same objects."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, shared)
    if next(model.parameters()).device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(twin)  # type: ignore[no-untyped-call]
        return converted
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SyncedBatchNorm2d
    return twin


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """nn.SyncBatchNorm, which PyTorch has for GPUs only, in plain operations."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        shape, axes = (1, -1, 1, 1), (0, 2, 3)
        ones = x.new_full((1,), x.numel() / x.shape[1])
        total = _Sum.apply(torch.cat([x.sum(axes), ones]))
        mean, count = total[:-1] / total[-1], total[-1]
        centered = x - mean.view(shape)
        variance: Tensor = _Sum.apply((centered * centered).sum(axes)) / count
        with torch.no_grad():
            kept = dict(self.named_buffers())
            kept["running_mean"].lerp_(mean, self.momentum)  # type: ignore[arg-type]
            kept["running_var"].lerp_(variance * count / (count - 1), self.momentum)  # type: ignore[arg-type]
            kept["num_batches_tracked"].add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        out: Tensor = centered * scale.view(shape) + self.bias.view(shape)
        return out


class _Sum(torch.autograd.Function):
    """The sum over all processes, with its gradient: the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
