"""The CUDA kernels against plain PyTorch: run on the CPU by a shim everywhere, and on a GPU where there is one.

The shim (tests/cuda_shim) compiles the same sources with the C++ compiler and runs the threads of a block in turns.
What only nvcc can tell, that every kernel compiles and keeps its values in registers, is tested where there is an nvcc.
"""

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from cuda_sources import SOURCES, digest, run_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_local_relation import BORDER, COMPOSABILITY, NORMALIZATION, VARIANTS, Inputs, gradients, make, relative_error
from torch import Tensor

from robust_lr.ops import local_relation as ops
from robust_lr.ops import nvcc, reference

# Largest relative error (in the 2-norm) of the result and of each gradient, against the oracle in float64.
TOLERANCE = {
    torch.float32: (1e-6, 5e-6),
    torch.float64: (1e-13, 1e-12),
    torch.bfloat16: (1e-2, 1e-2),
    torch.float16: (2e-3, 2e-3),
}

Operator = Callable[..., Tensor]


class ShimFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        y, stats = torch.ops.robust_lr_shim.local_relation(*arguments)
        ctx.save_for_backward(*arguments[:4], y, stats)
        ctx.options = arguments[4:]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, y, stats = ctx.saved_tensors
        needs_geo = ctx.needs_input_grad[3]
        dx, dq, dk, dgeo = torch.ops.robust_lr_shim.local_relation_backward(
            dy, *inputs, y, stats, *ctx.options, needs_geo
        )
        return dx, dq, dk, dgeo if needs_geo else None, *[None] * len(ctx.options)


def run_on_shim(
    x: Tensor, q: Tensor, k: Tensor, geo: Tensor | None, *, kernel_size: int | None = None, stride: int = 1,
    channels_per_group: int = 8, composability: str = "squared_difference", normalization: str = "softmax",
    border: str = "mask",
) -> Tensor:  # fmt: skip
    size = geo.shape[-1] if geo is not None else kernel_size
    composed = get_args(reference.Composability).index(composability)
    options = (size, stride, channels_per_group, composed, normalization == "softmax", border == "mask")
    y: Tensor = ShimFunction.apply(x, q, k, geo, *options)
    return y


def run_on_gpu(*inputs: Tensor | None, **options: Any) -> Tensor:
    y: Tensor = ops.local_relation(*(None if t is None else t.cuda() for t in inputs), **options)
    return y.cpu()


@pytest.fixture(params=["shim", "gpu"])
def operator(request: pytest.FixtureRequest) -> Operator:
    if request.param == "shim":
        request.getfixturevalue("shim")
        return run_on_shim
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return run_on_gpu


def assert_matches_oracle(operator: Operator, inputs: Inputs, **options: Any) -> None:
    """Compare the result and the gradients with those of the oracle in float64."""
    wide = Inputs(*(None if t is None else t.double() for t in inputs))
    dy = torch.randn(inputs.q.shape[0], inputs.x.shape[1], *inputs.q.shape[2:], dtype=torch.float64).to(inputs.x.dtype)
    wanted, wanted_gradients = gradients(reference.local_relation, wide, dy.double(), **options)
    actual, actual_gradients = gradients(operator, inputs, dy, **options)
    assert actual.dtype == inputs.x.dtype
    tolerance, gradient_tolerance = TOLERANCE[inputs.x.dtype]
    assert relative_error(actual, wanted) <= tolerance
    # The gradients of q, k and geo may cancel almost completely, so the tolerance also depends on the largest gradient.
    scale = max(float(g.norm()) for g in wanted_gradients) if actual.numel() else 1.0
    for a, b in zip(actual_gradients, wanted_gradients, strict=True):
        assert a.shape == b.shape
        assert float((a.double() - b).norm()) <= gradient_tolerance * max(float(b.norm()), 0.1 * scale)


@pytest.mark.parametrize("composability", COMPOSABILITY)
@pytest.mark.parametrize("normalization", NORMALIZATION)
@pytest.mark.parametrize("border", BORDER)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_matches_oracle(
    operator: Operator, composability: str, normalization: str, border: str, dtype: torch.dtype
) -> None:
    """All kinds of weights, both strides and layouts, at window size 7, which has specialized kernels for each kind."""
    shapes = itertools.cycle(((20, 9, 11, 8), (16, 3, 21, 8), (6, 16, 3, 4)))
    for stride, geo, channels_last in itertools.product((1, 2), (True, False), (True, False)):
        c, h, w, m = next(shapes)
        assert_matches_oracle(
            operator, make(2, c, h, w, m, 1, 7, stride, geo, dtype, channels_last), kernel_size=7, stride=stride,
            channels_per_group=m, composability=composability, normalization=normalization, border=border,
        )  # fmt: skip


@pytest.mark.parametrize("size", [3, 5, 9])
@pytest.mark.parametrize("border", BORDER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_window_sizes_match_oracle(operator: Operator, size: int, border: str, dtype: torch.dtype) -> None:
    for stride, channels_last in itertools.product((1, 2), (True, False)):
        inputs = make(1, 12, 17, 19, 8, 1, size, stride, True, dtype, channels_last)
        assert_matches_oracle(operator, inputs, stride=stride, border=border)


@settings(max_examples=60, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    n=st.integers(0, 3), c=st.integers(1, 20), h=st.integers(1, 12), w=st.integers(1, 20), m=st.integers(1, 17),
    d=st.sampled_from((1, 1, 2, 9)), size=st.sampled_from((1, 3, 5, 7, 9, 11)), stride=st.integers(1, 3),
    geo=st.booleans(), dtype=st.sampled_from(list(TOLERANCE)), channels_last=st.booleans(),
    composability=st.sampled_from(COMPOSABILITY), normalization=st.sampled_from(NORMALIZATION),
    border=st.sampled_from(BORDER), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_matches_oracle_at_any_shape(
    operator: Operator, n: int, c: int, h: int, w: int, m: int, d: int, size: int, stride: int, geo: bool,
    dtype: torch.dtype, channels_last: bool, composability: str, normalization: str, border: str, seed: int,
) -> None:  # fmt: skip
    if border == "zero" and not geo and dtype == torch.float32:
        # All taps outside the image then have the same weight, and adding it up many times always rounds in the same
        # direction. So in float32, windows are not larger than the image.
        size = min(size, 2 * ((min(h, w) - 1) // 2) + 1)
    assert_matches_oracle(
        operator, make(n, c, h, w, m, d, size, stride, geo, dtype, channels_last, seed), kernel_size=size,
        stride=stride, channels_per_group=m, composability=composability, normalization=normalization, border=border,
    )  # fmt: skip


def all_results(operator: Operator, inputs: Inputs, **options: Any) -> list[Tensor]:
    """The result and all gradients, for a gradient of the result that is the same for each image."""
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(1, inputs.x.shape[1], *inputs.q.shape[2:], generator=generator)
    y, found = gradients(operator, inputs, dy.expand(inputs.x.shape[0], -1, -1, -1), **options)
    return [y, *found]


@pytest.mark.parametrize("options", [*VARIANTS, {"stride": 3}, {"stride": 2, "border": "zero"}], ids=str)
def test_results_are_the_same_every_time(operator: Operator, options: dict[str, Any]) -> None:
    inputs = make(n=2, c=20, h=19, w=17, size=7, stride=options.get("stride", 1), dtype=torch.float32)
    first = all_results(operator, inputs, **options)
    for a, b in zip(first, all_results(operator, inputs, **options), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_results_do_not_depend_on_the_batch(operator: Operator, options: dict[str, Any]) -> None:
    inputs = make(3, 20, 9, 13, size=7, stride=options.get("stride", 1), dtype=torch.float32)
    together = all_results(operator, inputs, **options)[:4]
    for order in ([1], [2, 0]):
        some = all_results(operator, Inputs(*(t[order] for t in inputs[:3]), inputs.geo), **options)[:4]
        for a, b in zip(together, some, strict=True):
            assert torch.equal(a[order], b)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_layouts_agree(operator: Operator, dtype: torch.dtype, stride: int) -> None:
    """To the last bit, except for the prior's gradient, whose sum over all pixels has another order in each layout."""
    for c, h, w, m in ((20, 9, 11, 8), (16, 30, 5, 4), (13, 1, 1, 1), (36, 6, 5, 16)):
        results = [
            all_results(
                operator, make(2, c, h, w, m, size=7, stride=stride, dtype=dtype, channels_last=channels_last),
                stride=stride, channels_per_group=m,
            )
            for channels_last in (False, True)
        ]  # fmt: skip
        for a, b in zip(results[0][:4], results[1][:4], strict=True):
            assert torch.equal(a, b)
        assert relative_error(results[0][4], results[1][4].double()) <= 1e-5
        assert results[0][0].is_contiguous()
        assert results[1][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
def test_strided_views_need_no_copy(operator: Operator, channels_last: bool) -> None:
    """q and k may be slices of one tensor, x a crop or every second image, at any alignment."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    both, wide = torch.randn(2, 6, 9, 7), torch.randn(4, 25, 12, 9)
    both, wide = both.contiguous(memory_format=layout), wide.contiguous(memory_format=layout)
    views = Inputs(wide[::2, 5:, 2:11, 1:8], both[:, :3], both[:, 3:], torch.randn(3, 7, 7))
    copies = Inputs(*(t.contiguous() for t in views[:3]), views.geo)
    for a, b in zip(all_results(operator, views)[:4], all_results(operator, copies)[:4], strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize("stride", [1, 2])
def test_bindings_launch_on_the_current_stream_of_a_guarded_device(stride: int) -> None:
    """Like the driver, the shim refuses other streams, and more shared memory than the kernel was allowed."""
    inputs = make(2, 64, 28, 30, size=7, stride=stride, dtype=torch.float32, channels_last=True)
    dy = torch.randn_like(inputs.q.new_empty(2, 64, *inputs.q.shape[2:]))
    options = (7, stride, 8, 0, True, True)
    results = []
    for operators in (torch.ops.robust_lr_bindings, torch.ops.robust_lr_shim):
        y, stats = operators.local_relation(*inputs, *options)
        results.append([y, *operators.local_relation_backward(dy, *inputs, y, stats, *options, True)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("shim")
def test_rows_that_lie_far_apart_are_left_to_the_general_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The strip kernels compute distances in 32 bits, which do not suffice here; the result is the same."""
    inputs = make(1, 8, 3, 3, size=7, dtype=torch.float32)
    far = torch.empty_strided(inputs.x.shape, (1, 9, 2**23, 1))
    far.copy_(inputs.x)
    monkeypatch.setenv("CUDA_SHIM_LOG", str(tmp_path / "log"))
    y = run_on_shim(far, *inputs[1:])
    assert "forward_general" in (tmp_path / "log").read_text()
    torch.testing.assert_close(y, reference.local_relation(*inputs))


@pytest.mark.parametrize("composability", COMPOSABILITY)
def test_far_apart_queries_and_keys(operator: Operator, composability: str) -> None:
    """Logits of thousands, which are exact here; naive exponentials of them would all be zero or infinite."""
    inputs = make(n=2, c=16, h=8, w=9, size=7, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    for t in (inputs.q, inputs.k):
        t.copy_(torch.randint(-40, 40, t.shape, generator=generator) * 4)
    assert inputs.geo is not None
    inputs.geo.copy_(torch.randint(-3, 4, inputs.geo.shape, generator=generator))
    inputs.q[0] += 10**6 if composability == "absolute_difference" else 1000
    wide = Inputs(*(None if t is None else t.double() for t in inputs))
    dy = torch.randn(inputs.x.shape, generator=generator)
    wanted, wanted_gradients = gradients(reference.local_relation, wide, dy.double(), composability=composability)
    actual, actual_gradients = gradients(operator, inputs, dy, composability=composability)
    assert relative_error(actual, wanted) <= 1e-6
    for a, b in zip(actual_gradients, wanted_gradients, strict=True):
        assert relative_error(a, b) <= 5e-6


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_of_tens_of_thousands_are_as_exact_as_16_bits(
    operator: Operator, dtype: torch.dtype, stride: int
) -> None:
    """Kernels for 16-bit types store lse and its correction as one float; its rounding must be below that of values."""
    inputs = make(n=2, c=16, h=8, w=9, size=7, stride=stride, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    for t in (inputs.q, inputs.k):
        t.copy_(torch.randint(-40, 40, t.shape, generator=generator))
    assert inputs.geo is not None
    inputs.geo.copy_(torch.randint(-3, 4, inputs.geo.shape, generator=generator))
    inputs.q[0] += 100
    assert_matches_oracle(operator, inputs, stride=stride)


@pytest.mark.parametrize("name", ["x", "q", "k", "geo"])
@pytest.mark.parametrize("normalization", NORMALIZATION)
def test_nan_propagates(operator: Operator, name: str, normalization: str) -> None:
    inputs = make(n=2, c=20, h=9, w=10, size=7, dtype=torch.float32)
    tensor = getattr(inputs, name)
    tensor.view(-1)[tensor.numel() // 2] = float("nan")
    dy = torch.ones_like(inputs.x)
    actual, found = gradients(operator, inputs, dy, normalization=normalization)
    wanted, wanted_gradients = gradients(reference.local_relation, inputs, dy, normalization=normalization)
    assert wanted.isnan().any()
    assert torch.equal(actual.isnan(), wanted.isnan())
    for a, b in zip(found, wanted_gradients, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize("composability", COMPOSABILITY)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 3e38], ids=str)
def test_infinite_values(operator: Operator, composability: str, value: float) -> None:
    inputs = make(n=2, c=20, h=9, w=10, size=7, dtype=torch.float32)
    inputs.k[0, 1, 4, 5] = value
    inputs.q[1, 2, 3, 3] = value
    y = operator(*inputs, composability=composability)
    wanted = reference.local_relation(*inputs, composability=composability)
    assert torch.equal(y.isfinite(), wanted.isfinite())
    torch.testing.assert_close(y[wanted.isfinite()], wanted[wanted.isfinite()])


def test_masked_taps(operator: Operator) -> None:
    """A prior of minus infinity removes a tap, whatever its position."""
    inputs = make(n=1, c=8, h=5, w=5, size=7, dtype=torch.float32)
    assert inputs.geo is not None
    inputs.geo.fill_(float("-inf"))
    inputs.geo[:, 3, 3] = 0
    torch.testing.assert_close(operator(*inputs), inputs.x)


@pytest.mark.parametrize("size", [7, 11])
def test_corners_without_a_tap(operator: Operator, size: int) -> None:
    """The result is NaN, a mean over nothing, exactly where all taps that the prior leaves lie outside the image."""
    inputs = make(n=2, c=20, h=6, w=9, size=size, dtype=torch.float32)
    assert inputs.geo is not None
    inputs.geo.fill_(float("-inf"))
    inputs.geo[:, 0, 0] = 0
    y, wanted = operator(*inputs), reference.local_relation(*inputs)
    assert wanted[..., :3, :].isnan().all()
    torch.testing.assert_close(y, wanted, equal_nan=True)


@pytest.mark.parametrize("normalization", NORMALIZATION)
@pytest.mark.parametrize("size", [7, 11])
def test_prior_gradient_only_where_wanted(operator: Operator, normalization: str, size: int) -> None:
    """Without the prior's gradient, which attacks do not need, the other gradients are the same."""
    inputs = make(n=1, c=20, h=9, w=10, size=size, dtype=torch.float32)
    every = all_results(operator, inputs, normalization=normalization)
    leaves = [t.requires_grad_() for t in inputs[:3]]
    assert inputs.geo is not None
    y = operator(*leaves, inputs.geo, normalization=normalization)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(every[1:4], torch.autograd.grad(y, leaves, dy), strict=True):
        assert torch.equal(a, b)


def test_gradients_are_right(operator: Operator) -> None:
    for stride, d, border in ((1, 1, "mask"), (2, 2, "zero")):
        inputs = [t.requires_grad_() for t in make(n=1, c=5, h=4, w=3, m=3, d=d, stride=stride) if t is not None]
        assert torch.autograd.gradcheck(
            lambda *t, s=stride, b=border: operator(*t, stride=s, channels_per_group=3, border=b), inputs
        )


STRIPS = {"forward_strips", "backward_queries", "backward_keys", "sum_parts"}
GENERAL = {"forward_general", "dq_general", "dk_general", "dx_general", "dgeo_general", "sum_parts"}


@pytest.mark.usefixtures("shim")
@pytest.mark.parametrize(
    ("wanted", "dtype", "size", "stride", "m", "d", "options"),
    [
        # what LR-Nets have, in the paper and in its ablations
        *((STRIPS, dtype, 7, stride, 8, 1, {}) for dtype in (torch.float32, torch.bfloat16, torch.float16)
          for stride in (1, 2)),
        *((STRIPS, torch.float32, size, stride, 8, 1, {}) for size in (3, 5, 9) for stride in (1, 2)),
        *((STRIPS, torch.float32, 7, 1, m, 1, {}) for m in (1, 2, 4)),
        *((STRIPS, torch.float32, 7, 1, 8, 1, {"composability": phi}) for phi in COMPOSABILITY),
        (STRIPS, torch.float32, 7, 1, 8, 1, {"normalization": "none"}),
        (STRIPS, torch.float32, 7, 2, 8, 1, {"border": "zero"}),
        # what is left to the general kernels
        (GENERAL, torch.float32, 7, 1, 16, 1, {}),
        (GENERAL, torch.float32, 7, 1, 8, 2, {"composability": "product"}),
        (GENERAL, torch.float32, 7, 3, 8, 1, {}),
        (GENERAL, torch.float32, 11, 1, 8, 1, {}),
        (GENERAL, torch.float32, 3, 1, 8, 1, {"composability": "product"}),
        (GENERAL, torch.float64, 7, 1, 8, 1, {}),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else str(value),  # sets have no fixed order
)  # fmt: skip
def test_specialized_kernels_are_taken_where_they_cover(
    wanted: set[str], dtype: torch.dtype, size: int, stride: int, m: int, d: int, options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("CUDA_SHIM_LOG", str(tmp_path / "log"))
    inputs = make(1, 16, 6, 7, m, d, size, stride, dtype=dtype)
    all_results(run_on_shim, inputs, stride=stride, channels_per_group=m, **options)
    launched = (tmp_path / "log").read_text().split()
    assert {name for symbol in launched for name in STRIPS | GENERAL if name in symbol} == wanted
    assert all(any(name in symbol for name in wanted) for symbol in launched)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_gpu
def test_runs_on_the_current_stream() -> None:
    """The kernels must wait for an earlier write on that stream, however long it takes."""
    x, q, k, geo = (t.cuda() for t in make(c=8, dtype=torch.float32) if t is not None)
    x.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.fill_(1)
        y = ops.local_relation(x, q, k, geo)
    stream.synchronize()
    torch.testing.assert_close(y, torch.ones_like(y))


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_runs_on_the_device_of_its_tensors() -> None:
    inputs = [t for t in make(c=8, dtype=torch.float32) if t is not None]
    y = ops.local_relation(*(t.to("cuda:1") for t in inputs))
    assert y.device == torch.device("cuda:1")
    torch.testing.assert_close(y.cpu(), reference.local_relation(*inputs))


@needs_gpu
def test_more_elements_than_32_bits_count() -> None:
    """The last image of a large batch has the same results as on its own."""
    n, size = 5500, 224
    if torch.cuda.mem_get_info()[0] < 20 * n * size**2 * 2:
        pytest.skip("not enough memory")
    x = torch.randn(1, 8, size, size, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    q, k = (torch.randn(1, 1, size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    geo = torch.randn(1, 3, 3, device="cuda")
    many = [t.expand(n, -1, -1, -1).contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, q, k)]
    one = [t.requires_grad_() for t in (x, q, k)]
    assert many[0].numel() > 2**31
    y, wanted = ops.local_relation(*many, geo), ops.local_relation(*one, geo)
    assert torch.equal(y[-1:], wanted)
    pairs = zip(torch.autograd.grad(y.sum(), many), torch.autograd.grad(wanted.sum(), one), strict=True)
    for a, b in pairs:
        assert torch.equal(a[-1:], b)


@needs_gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("channels_last", [False, True])
def test_operator_is_registered_correctly(channels_last: bool) -> None:
    for dtype, stride, geo in ((torch.float32, 1, True), (torch.bfloat16, 2, False)):
        inputs = make(dtype=dtype, stride=stride, geo=geo, channels_last=channels_last)
        leaves = tuple(None if t is None else t.cuda().requires_grad_() for t in inputs)
        ops.local_relation(*leaves, kernel_size=3, stride=stride)  # loads the operator
        for softmax in (True, False):
            options = (3, stride, 8, 0, softmax, True)
            torch.library.opcheck(torch.ops.robust_lr.local_relation.default, (*leaves, *options), rtol=2e-2, atol=2e-2)


def on_gpu(**options: Any) -> list[Tensor]:
    return [t.cuda().requires_grad_() for t in make(**options) if t is not None]


@needs_gpu
def test_autocast_computes_logits_in_float32() -> None:
    leaves = on_gpu(c=16, dtype=torch.float32)
    wanted = reference.local_relation(*(t.double() for t in leaves))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = ops.local_relation(*leaves)
        narrow = ops.local_relation(*(t.bfloat16() for t in leaves[:3]), leaves[3])
    assert relative_error(y.detach(), wanted.detach()) <= 1e-6
    assert narrow.dtype == torch.bfloat16


@needs_gpu
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_function_transforms() -> None:
    x, q, k, geo = on_gpu(n=6, c=12, dtype=torch.float32)
    x, q, k = (t.detach().reshape(3, 2, *t.shape[1:]) for t in (x, q, k))
    found, wanted = (
        torch.func.vmap(torch.func.grad(lambda *t, f=f: f(*t).square().sum(), argnums=(0, 1, 2, 3)), (0, 0, 0, None))(
            x, q, k, geo.detach()
        )
        for f in (ops.local_relation, reference.local_relation)
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@needs_gpu
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(backend: str) -> None:
    leaves = on_gpu(dtype=torch.float32, channels_last=True)
    y = torch.compile(ops.local_relation, backend=backend, fullgraph=True)(*leaves)
    eager = ops.local_relation(*leaves)
    assert torch.equal(y, eager)
    assert y.stride() == eager.stride()
    for a, b in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(eager.sum(), leaves), strict=True):
        assert torch.equal(a, b)


@needs_gpu
def test_no_gradients_of_gradients_are_lost() -> None:
    leaves = on_gpu(n=1, c=5, h=3, w=2, m=5)
    assert torch.autograd.gradgradcheck(lambda *t: ops.local_relation(*t, channels_per_group=5), leaves)


# Output of nvcc for the kernels


def kernels(log: str) -> dict[str, tuple[int, int]]:
    """Registers and bytes of stack or spills of each kernel, from the output of ptxas -v."""
    found = re.findall(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    return {f"{name} for {arch}": (int(regs), sum(map(int, sizes))) for name, arch, *sizes, regs in found}


# Some of the kernels for each architecture; ROBUST_LR_TEST_CUDA=all compiles all of them for both, which takes minutes.
COMPILED = {
    "sm_80": ["common/sum", "local_relation/forward_float", "local_relation/backward_float"],
    "sm_90": ["local_relation/forward_bfloat16", "local_relation/backward_bfloat16", "stem/bfloat16"],
}


@pytest.mark.parametrize("arch", COMPILED)
def test_kernels_compile_without_spills(arch: str, pytestconfig: pytest.Config) -> None:
    toolkit = nvcc.find()
    if toolkit is None:
        pytest.skip("no nvcc to compile the CUDA kernels with")
    every = os.environ.get("ROBUST_LR_TEST_CUDA") == "all"
    sources = sorted(SOURCES.rglob("*.cu")) if every else [SOURCES / f"{name}.cu" for name in COMPILED[arch]]
    key = f"cuda_kernels/{arch}-{digest(toolkit.version, *map(str, sources))}"
    log = pytestconfig.cache.get(key, None)
    if log is None:
        flags = [*nvcc.FLAGS, f"-arch={arch}", "-Xptxas", "-v", "-cubin"]
        log = run_all([[toolkit.nvcc, *flags, str(source), "-o", os.devnull] for source in sources])
        pytestconfig.cache.set(key, log)
    found = kernels(log)
    compiled = set(re.findall(r"Compiling entry function '(\w+)'", log))
    assert len(found) == len(compiled) >= 40
    spilled = {name: size for name, (_, size) in found.items() if size > 0}
    assert not spilled
    assert max(registers for registers, _ in found.values()) <= 168  # three blocks of 128 threads on a multiprocessor
