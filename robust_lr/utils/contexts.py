"""The device of a model, and context managers that change a model's mode or the precision and restore it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the parameters, or the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Put ``model`` into eval mode with frozen parameters; restore it afterwards, even after an exception.

    Modes, ``requires_grad`` flags, gradients and buffers are restored, including buffers that a forward pass changed.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        for parameter, _, _ in flags:
            parameter.grad = None  # the caller's gradient must be neither accumulated into nor cleared
        yield model.eval().requires_grad_(False)
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            # an in-place write would invalidate a graph that the caller still has to differentiate
            if not buffer.is_meta and not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def fp32(device: torch.device) -> Iterator[None]:
    """Compute in deterministic fp32, whatever the caller's autocast and precision settings are."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def tf32() -> Iterator[None]:
    """Use TF32 in matrix products and convolutions on CUDA. Use it inside ``fp32``, whose settings it restores."""
    torch.set_float32_matmul_precision("high")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
            yield
    finally:
        torch.set_float32_matmul_precision("highest")


Model = Callable[[Tensor], Tensor]
