"""The local relation operator: one call for every device, dtype and memory layout."""

import functools
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from . import library, reference
from .reference import Border, Composability, Normalization, RelationOptions


def local_relation(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    geo: Tensor | None,
    *,
    kernel_size: int | None = None,
    stride: int = 1,
    channels_per_group: int = 8,
    composability: Composability = "squared_difference",
    normalization: Normalization = "softmax",
    border: Border = "mask",
) -> Tensor:
    """Aggregate each window of `x` with weights composed from `q` and `k` (paper section 4).

        logit[g, p', p] = sum_j Phi(q[g, j, p'], k[g, j, p]) + geo[g, p - p']     p in the K x K window around p'
        y[c, p']        = sum_p softmax_p(logit[c // m, p', p]) * x[c, p]

    Args:
        x: values [N, C, H, W].
        q: queries [N, G*d, Ho, Wo] on the output grid, Ho = ceil(H / stride); component j of group g is channel
            g*d + j. There are G = ceil(C / channels_per_group) groups of consecutive channels, the last one short
            where C is not divisible (ours). One component (d = 1) is the paper's layer; "product" with d > 1 is
            the dot product of its Table 4.
        k: keys [N, G*d, H, W] on the input grid, laid out like q.
        geo: geometric prior [G, K, K] added to the logits, in float32 or wider; or None, with `kernel_size` given.
        kernel_size: K, odd; needed only where geo is None.
        stride: windows are centered at stride * p', as in a convolution with padding K // 2.
        channels_per_group: m, the channels that share one set of weights.
        composability: Phi: -(q - k)**2, -|q - k| or q * k.
        normalization: "softmax", or "none" to use the logits as the weights (ablation of the paper's Table 6).
        border: positions outside the image take no part ("mask", ours), or take part with k = 0 and x = 0 ("zero").

    Returns:
        y [N, C, Ho, Wo] in the widest dtype of x, q and k, in x's memory format. Logits and sums are float32, or
        float64 for float64 inputs.

    Raises:
        InputError: for a shape, dtype, device or option that does not fit.
    """
    options = RelationOptions(kernel_size, stride, channels_per_group, composability, normalization, border)
    only_shape = x.is_meta and not torch.is_grad_enabled()  # needs neither kernels nor a loop over the window
    if not only_shape and not has_kernels(x.device.type):
        return reference.aggregate(x, q, k, geo, options)
    shape = reference.check(x, q, k, geo, options)
    dtype = reference.common_dtype(x, q, k)
    if only_shape:
        return _empty_like(x, x.shape[1], shape.height, shape.width).to(dtype)
    wide = reference.accumulation_dtype(dtype)
    # The CPU kernels have no float16.
    computed = wide if dtype == torch.float16 and x.device.type == "cpu" else dtype
    y = _apply(
        x.to(computed),
        q.to(computed),
        k.to(computed),
        None if geo is None else geo.to(wide).contiguous(),
        *replace(options, kernel_size=shape.kernel_size).numbers(),
    )
    return y.to(dtype)


def joined_relation(x: Tensor, qk: Tensor, geo: Tensor | None, **options: Any) -> Tensor:
    """Do what `local_relation` does at stride 1, for queries and keys that are the halves of one tensor's channels.

    Their gradients are one tensor as well, if there is a kernel for that.
    """
    covered = (
        x.device.type == "cpu"
        and x.dtype == qk.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and not (geo is not None and geo.requires_grad)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and has_kernels("cpu")
    )
    q, k = qk.chunk(2, dim=1)
    if not covered:
        return local_relation(x, q, k, geo, **options)
    given = RelationOptions(**options)
    given = replace(given, kernel_size=reference.check(x, q, k, geo, given).kernel_size)
    prior = None if geo is None else geo.to(reference.accumulation_dtype(x.dtype)).contiguous()
    y: Tensor = _JoinedRelation.apply(x, qk, prior, given)
    return y


class _JoinedRelation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, qk: Tensor, geo: Tensor | None, options: RelationOptions) -> Tensor:
        y: Tensor
        y, stats = torch.ops.robust_lr.local_relation.default(x, *qk.chunk(2, dim=1), geo, *options.numbers())
        ctx.save_for_backward(x, qk, geo, y, stats)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, qk, geo, y, stats = ctx.saved_tensors
        if torch.is_grad_enabled():  # a caller wants gradients of gradients
            points = x.view_as(x), qk.view_as(qk)  # views cut a path from one to the other that is not this operator's
            q, k = points[1].chunk(2, dim=1)
            z = local_relation(points[0], q, k, geo, **asdict(ctx.options))
            dx, dqk = torch.autograd.grad(z, points, dy, create_graph=True)
        else:
            dx, dqk = torch.ops.robust_lr.joined_relation_backward.default(
                dy, x, qk, geo, y, stats, *ctx.options.numbers()
            )
        return dx, dqk, None, None


def _apply(*arguments: Any) -> Tensor:
    apply: Callable[..., tuple[Tensor, Tensor]]
    if torch.compiler.is_compiling():
        apply = torch.ops.robust_lr.local_relation.default
    elif torch._C._are_functorch_transforms_active():
        apply = _TransformableLocalRelation.apply
    else:
        apply = _LocalRelation.apply  # has the least overhead per call
    return apply(*arguments)[0]


def has_kernels(device: str) -> bool:
    """Return True if there are compiled operators for a type of device; torch.compile asks while it traces."""
    return _load(device)


# The same as torch.compiler.assume_constant_result, which would import torch._dynamo and take seconds.
has_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _load(device: str) -> bool:
    """Load the compiled operators for a type of device; False where there are none."""
    if not library.load(device):
        return False
    _register()
    return True


@functools.cache
def _register() -> None:
    """Tell PyTorch the shapes and gradients of the compiled operators."""
    torch.library.register_fake("robust_lr::local_relation", _fake)
    torch.library.register_fake("robust_lr::local_relation_backward", _fake_backward)
    torch.library.register_autograd("robust_lr::local_relation", _backward, setup_context=_setup_context)
    for operator in (torch.ops.robust_lr.local_relation, torch.ops.robust_lr.local_relation_backward):
        torch.library.register_vmap(operator.default, functools.partial(_one_by_one, operator.default))


class _LocalRelation(torch.autograd.Function):
    """The compiled operator with its gradient; arguments as in csrc/schema.h."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        y, stats = torch.ops.robust_lr.local_relation.default(*arguments)
        _setup_context(ctx, arguments, (y, stats))
        return y, stats

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *gradients)


class _TransformableLocalRelation(torch.autograd.Function):
    """The same in the form that torch.func requires."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        y, stats = torch.ops.robust_lr.local_relation.default(*arguments)
        return y, stats

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _setup_context(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, *gradients)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, q, k, geo, *ctx.options = inputs
    y, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, q, k, geo, y, stats)


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None = None) -> tuple[Tensor | None, ...]:
    x, q, k, geo, y, stats = ctx.saved_tensors
    rest = (None,) * len(ctx.options)
    if dy is None:
        return None, None, None, None, *rest
    needs_geo = geo is not None and ctx.needs_input_grad[3]
    # Gradients are enabled here if a caller wants gradients of gradients.
    apply = _Gradients.apply if torch.is_grad_enabled() else torch.ops.robust_lr.local_relation_backward.default
    dx, dq, dk, dgeo = apply(dy, x, q, k, geo, y, stats, *ctx.options, needs_geo)
    return dx, dq, dk, dgeo if needs_geo else None, *rest


class _Gradients(torch.autograd.Function):
    """The compiled gradients, which are differentiated themselves by way of the plain PyTorch operator."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dx, dq, dk, dgeo = torch.ops.robust_lr.local_relation_backward.default(*arguments)
        return dx, dq, dk, dgeo

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _, _ = inputs[:7]
        *ctx.options, ctx.needs_geo = inputs[7:]
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        dy, *inputs = (tensor for tensor in ctx.saved_tensors if tensor is not None)
        options = RelationOptions.from_numbers(ctx.options)

        def plain(x: Tensor, q: Tensor, k: Tensor, geo: Tensor | None = None) -> Tensor:
            return reference.aggregate(x, q, k, geo, options)

        wanted = 4 if ctx.needs_geo else 3

        def gradients(dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            pull_back = torch.func.vjp(plain, *inputs)[1]
            return tuple(pull_back(dy)[:wanted])

        found = torch.func.vjp(gradients, dy, *inputs)[1](cotangents[:wanted])
        return *found, *(None,) * (len(ctx.needs_input_grad) - len(found))


def _one_by_one(
    operator: Callable[..., tuple[Tensor, ...]], info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Apply torch.vmap to an operator by one call for each index of the mapped dimension."""
    calls = [
        operator(*(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    results = tuple(torch.stack(result) for result in zip(*calls, strict=True))
    return results, (0,) * len(results)


def _fake(
    x: Tensor, q: Tensor, k: Tensor, geo: Tensor | None, kernel_size: int, stride: int, channels_per_group: int,
    composability: int, softmax: bool, mask: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return empty results with the shapes, dtypes and strides that the forward operator's backends in csrc make."""
    n, channels, height, width = x.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    groups = -(-channels // channels_per_group)
    wide = reference.accumulation_dtype(x.dtype)
    per_pixel = groups
    if x.device.type == "cpu":
        per_pixel = 2 * groups + (channels if x.dtype != wide else 0)
    y = _empty_like(x, channels, out_height, out_width)
    return y, x.new_empty(n * out_height * out_width * (per_pixel if softmax else 0), dtype=wide)


def _fake_backward(
    dy: Tensor, x: Tensor, q: Tensor, k: Tensor, geo: Tensor | None, y: Tensor, stats: Tensor, kernel_size: int,
    stride: int, channels_per_group: int, composability: int, softmax: bool, mask: bool, needs_geo: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    groups = -(-x.shape[1] // channels_per_group) if needs_geo else 0
    dgeo = x.new_empty(groups, kernel_size, kernel_size, dtype=reference.accumulation_dtype(x.dtype))
    dx, dq, dk = (_empty_like(t, *t.shape[1:]) for t in (x, q, k))
    return dx, dq, dk, dgeo


def _empty_like(tensor: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return an empty tensor in the dtype and memory format of another."""
    channels_last = tensor.shape[1] > 1 and tensor.stride(1) == 1 and tensor.stride(3) != 1
    return torch.empty(
        (tensor.shape[0], channels, height, width),
        dtype=tensor.dtype,
        device=tensor.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
