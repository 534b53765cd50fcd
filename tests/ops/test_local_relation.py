"""The local relation operator: plain PyTorch against loops over pixels, and the kernels against plain PyTorch."""

import itertools
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robust_lr.ops import library, reference
from robust_lr.ops import local_relation as ops
from robust_lr.utils.errors import InputError

COMPOSABILITY = ("squared_difference", "absolute_difference", "product")
NORMALIZATION = ("softmax", "none")
BORDER = ("mask", "zero")
# Largest relative error (in the 2-norm) of the result and of each gradient, against the oracle in float64.
TOLERANCE = {torch.float32: (1e-6, 5e-6), torch.float64: (1e-13, 1e-12), torch.bfloat16: (1e-2, 1e-2)}

needs_kernels = pytest.mark.skipif(not library.load(), reason="no compiled kernels")


class Inputs(NamedTuple):
    x: Tensor
    q: Tensor
    k: Tensor
    geo: Tensor | None


def make(
    n: int = 2, c: int = 12, h: int = 6, w: int = 5, m: int = 8, d: int = 1, size: int = 3, stride: int = 1,
    geo: bool = True, dtype: torch.dtype = torch.float64, channels_last: bool = False, seed: int = 0,
) -> Inputs:  # fmt: skip
    """Normally distributed inputs."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-c // m)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, q, k = (
        normal(*shape).to(dtype).contiguous(memory_format=layout)
        for shape in ((n, c, h, w), (n, groups * d, -(-h // stride), -(-w // stride)), (n, groups * d, h, w))
    )
    prior = normal(groups, size, size).to(reference.accumulation_dtype(dtype)) if geo else None
    return Inputs(x, q, k, prior)


def gradients(operator: Any, inputs: Inputs, dy: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The result of an operator, and the gradients of all inputs for the gradient `dy` of the result."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = operator(*leaves, **options)
    return y.detach(), list(torch.autograd.grad(y, [t for t in leaves if t is not None], dy.to(y.dtype)))


def flat(result: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
    return [result[0], *result[1]]


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    if wanted.numel() == 0:
        return 0.0
    return float((actual.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))


def assert_matches_oracle(inputs: Inputs, **options: Any) -> None:
    """Compare the kernels' result and gradients with those of the oracle in float64."""
    wide = Inputs(*(None if t is None else t.double() for t in inputs))
    torch.manual_seed(0)
    dy = torch.randn(inputs.q.shape[0], inputs.x.shape[1], *inputs.q.shape[2:]).to(inputs.x.dtype)
    wanted, wanted_gradients = gradients(reference.local_relation, wide, dy.double(), **options)
    actual, actual_gradients = gradients(ops.local_relation, inputs, dy, **options)
    assert actual.dtype == inputs.x.dtype
    tolerance, gradient_tolerance = TOLERANCE[inputs.x.dtype]
    assert relative_error(actual, wanted) <= tolerance
    # The gradients of q, k and geo may cancel almost completely, so the tolerance also depends on the largest gradient.
    scale = max(float(g.norm()) for g in wanted_gradients) if actual.numel() else 1.0
    for a, b in zip(actual_gradients, wanted_gradients, strict=True):
        assert a.shape == b.shape
        assert float((a.double() - b).norm()) <= gradient_tolerance * max(float(b.norm()), 0.1 * scale)


def direct(
    inputs: Inputs, size: int, stride: int, m: int, composability: str, normalization: str, border: str
) -> Tensor:
    """The paper's section 4 as loops over pixels, written independently of the oracle."""
    x, q, k, geo = inputs
    n, channels, height, width = x.shape
    groups = -(-channels // m)
    d = q.shape[1] // groups
    y = torch.zeros(n, channels, *q.shape[2:], dtype=torch.float64)
    for image, h, w, c in itertools.product(range(n), range(q.shape[2]), range(q.shape[3]), range(channels)):
        g = c // m
        logits, values = [], []
        for i, j in itertools.product(range(size), range(size)):
            row, column = h * stride + i - size // 2, w * stride + j - size // 2
            inside = 0 <= row < height and 0 <= column < width
            if not inside and border == "mask":
                continue
            logit = 0.0 if geo is None else float(geo[g, i, j])
            for component in range(g * d, g * d + d):
                query = float(q[image, component, h, w])
                key = float(k[image, component, row, column]) if inside else 0.0
                if composability == "squared_difference":
                    logit -= (query - key) ** 2
                elif composability == "absolute_difference":
                    logit -= abs(query - key)
                else:
                    logit += query * key
            logits.append(logit)
            values.append(float(x[image, c, row, column]) if inside else 0.0)
        weights = torch.tensor(logits, dtype=torch.float64)
        if normalization == "softmax":
            weights = weights.exp() / weights.exp().sum()
        y[image, c, h, w] = weights @ torch.tensor(values, dtype=torch.float64)
    return y


@pytest.mark.parametrize("composability", COMPOSABILITY)
@pytest.mark.parametrize("normalization", NORMALIZATION)
@pytest.mark.parametrize("border", BORDER)
def test_oracle_is_the_paper(composability: str, normalization: str, border: str) -> None:
    for stride, d, geo in ((1, 1, True), (2, 1, False), (1, 2, False), (2, 3, True)):
        inputs = make(n=2, c=5, h=3, w=4, m=3, d=d, size=3, stride=stride, geo=geo)
        y = reference.local_relation(
            *inputs, kernel_size=3, stride=stride, channels_per_group=3,
            composability=composability, normalization=normalization, border=border,
        )  # fmt: skip
        torch.testing.assert_close(y, direct(inputs, 3, stride, 3, composability, normalization, border))


@needs_kernels
@pytest.mark.parametrize("composability", COMPOSABILITY)
@pytest.mark.parametrize("normalization", NORMALIZATION)
@pytest.mark.parametrize("border", BORDER)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_kernels_match_oracle(composability: str, normalization: str, border: str, dtype: torch.dtype) -> None:
    sizes = itertools.cycle((3, 5, 7, 9, 3))
    shapes = itertools.cycle(((20, 9, 11, 8), (6, 16, 3, 8), (37, 4, 4, 8)))
    for stride, d, geo, channels_last in itertools.product((1, 2), (1, 2), (True, False), (True, False)):
        size, (c, h, w, m) = next(sizes), next(shapes)
        inputs = make(3, c, h, w, m, d, size, stride, geo, dtype, channels_last)
        assert_matches_oracle(
            inputs, kernel_size=size, stride=stride, channels_per_group=m,
            composability=composability, normalization=normalization, border=border,
        )  # fmt: skip


@needs_kernels
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    n=st.integers(0, 5), c=st.integers(1, 20), h=st.integers(1, 12), w=st.integers(1, 20), m=st.integers(1, 17),
    d=st.integers(1, 3), size=st.sampled_from((1, 3, 5, 7, 11)), stride=st.integers(1, 3), geo=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)), channels_last=st.booleans(), composability=st.sampled_from(COMPOSABILITY),
    normalization=st.sampled_from(NORMALIZATION), border=st.sampled_from(BORDER), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_kernels_match_oracle_at_any_shape(
    n: int, c: int, h: int, w: int, m: int, d: int, size: int, stride: int, geo: bool, dtype: torch.dtype,
    channels_last: bool, composability: str, normalization: str, border: str, seed: int,
) -> None:  # fmt: skip
    inputs = make(n, c, h, w, m, d, size, stride, geo, dtype, channels_last, seed)
    assert_matches_oracle(
        inputs, kernel_size=size, stride=stride, channels_per_group=m,
        composability=composability, normalization=normalization, border=border,
    )  # fmt: skip


@pytest.mark.parametrize("composability", COMPOSABILITY)
@pytest.mark.parametrize("normalization", NORMALIZATION)
@pytest.mark.parametrize(("stride", "d", "border"), [(1, 1, "mask"), (2, 2, "zero")])
def test_gradients_are_right(composability: str, normalization: str, stride: int, d: int, border: str) -> None:
    inputs = [t.requires_grad_() for t in make(n=2, c=5, h=3, w=2, m=3, d=d, stride=stride) if t is not None]

    def operator(*tensors: Tensor) -> Tensor:
        return ops.local_relation(
            *tensors, stride=stride, channels_per_group=3,
            composability=composability, normalization=normalization, border=border,
        )  # fmt: skip

    assert torch.autograd.gradcheck(operator, inputs)
    assert torch.autograd.gradgradcheck(operator, inputs)


def test_only_wanted_gradients() -> None:
    x, q, k, geo = make(dtype=torch.float32)
    x.requires_grad_()
    ops.local_relation(x, q, k, geo).sum().backward()
    wanted = torch.autograd.grad(reference.local_relation(x, q, k, geo).sum(), x)[0]
    torch.testing.assert_close(x.grad, wanted)
    assert q.grad is None
    assert geo is not None
    assert geo.grad is None


@needs_kernels
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("channels_last", [False, True])
def test_operator_is_registered_correctly(channels_last: bool) -> None:
    ops.local_relation(*make())  # loads the operator
    for dtype, stride, geo in ((torch.float32, 1, True), (torch.bfloat16, 2, False)):
        inputs = make(dtype=dtype, stride=stride, geo=geo, channels_last=channels_last)
        leaves = tuple(None if t is None else t.requires_grad_() for t in inputs)
        for softmax in (True, False):
            options = (3, stride, 8, 0, softmax, True)
            torch.library.opcheck(torch.ops.robust_lr.local_relation.default, (*leaves, *options), rtol=2e-2, atol=2e-2)


def all_results(inputs: Inputs, **options: Any) -> list[Tensor]:
    """The result and the gradients of x, q and k (that of geo sums over the batch)."""
    torch.manual_seed(1)
    dy = torch.randn(1, inputs.x.shape[1], *inputs.q.shape[2:]).expand(inputs.x.shape[0], -1, -1, -1)
    return flat(gradients(ops.local_relation, inputs, dy, **options))[:4]


VARIANTS = [{}, {"stride": 2}, {"composability": "product"}, {"normalization": "none"}, {"border": "zero"}]


@needs_kernels
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_results_do_not_depend_on_threads_or_repetition(options: dict[str, Any]) -> None:
    inputs = make(n=5, c=20, h=19, w=17, size=7, stride=options.get("stride", 1), dtype=torch.float32)
    first = all_results(inputs, **options)
    torch.set_num_threads(3)
    try:
        second = all_results(inputs, **options)
    finally:
        torch.set_num_threads(1)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@needs_kernels
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("size", [(9, 13), (4, 4), (17, 20)], ids=str)
def test_results_do_not_depend_on_the_batch(options: dict[str, Any], size: tuple[int, int]) -> None:
    inputs = make(7, 20, *size, size=5, stride=options.get("stride", 1), dtype=torch.float32)
    # One image has queries far from all keys, so all images in the same vector take the path for underflow with it.
    inputs.q[3] += 100
    together = all_results(inputs, **options)
    for order in ([3], [6, 0], [2, 5, 1, 3, 4]):
        some = all_results(Inputs(*(t[order] for t in inputs[:3]), inputs.geo), **options)
        for a, b in zip(together, some, strict=True):
            assert torch.equal(a[order], b)


@needs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_layouts_agree(dtype: torch.dtype, stride: int) -> None:
    for c, h, w, m in ((20, 9, 11, 8), (16, 16, 16, 4), (6, 5, 3, 8), (13, 1, 1, 1)):
        planar = make(3, c, h, w, m, size=5, stride=stride, dtype=dtype)
        last = make(3, c, h, w, m, size=5, stride=stride, dtype=dtype, channels_last=True)
        options = {"stride": stride, "channels_per_group": m}
        results = all_results(planar, **options), all_results(last, **options)
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
        assert results[0][0].is_contiguous()
        assert results[1][0].is_contiguous(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
def test_strided_views_need_no_copy(channels_last: bool) -> None:
    """q and k may be slices of one tensor, x a crop or every second image."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    both, wide = torch.randn(4, 6, 9, 7), torch.randn(8, 20, 12, 9)
    both, wide = both.contiguous(memory_format=layout), wide.contiguous(memory_format=layout)
    geo = torch.randn(3, 3, 3)
    views = Inputs(wide[::2, :, 2:11, 1:8], both[:, :3], both[:, 3:], geo)
    copies = Inputs(*(t.contiguous() for t in views[:3]), geo)
    for a, b in zip(all_results(views), all_results(copies), strict=True):
        assert torch.equal(a, b)


@needs_kernels
@pytest.mark.parametrize("composability", COMPOSABILITY)
def test_far_apart_queries_and_keys(composability: str) -> None:
    """Logits of thousands, which are exact here; naive exponentials of them would all be zero or infinite."""
    torch.manual_seed(0)
    inputs = make(n=3, c=16, h=8, w=9, size=5, dtype=torch.float32)
    inputs.q.copy_(torch.randint(-40, 40, inputs.q.shape) * 4)
    inputs.k.copy_(torch.randint(-40, 40, inputs.k.shape) * 4)
    assert inputs.geo is not None
    inputs.geo.copy_(torch.randint(-3, 4, inputs.geo.shape))
    inputs.q[0] += 10**6 if composability == "absolute_difference" else 1000
    wide = Inputs(*(None if t is None else t.double() for t in inputs))
    dy = torch.randn_like(inputs.x)
    wanted, *wanted_gradients = flat(gradients(reference.local_relation, wide, dy, composability=composability))
    _, *plain_gradients = flat(gradients(reference.local_relation, inputs, dy, composability=composability))
    actual, *actual_gradients = flat(gradients(ops.local_relation, inputs, dy, composability=composability))
    assert relative_error(actual, wanted) <= 1e-6
    # The rounding of differences that cancel is multiplied by the distance, so PyTorch in float32 sets the tolerance.
    for a, b, p in zip(actual_gradients, wanted_gradients, plain_gradients, strict=True):
        assert relative_error(a, b) <= max(5e-6, 8 * relative_error(p, b))


@needs_kernels
@pytest.mark.parametrize(("name", "place"), [("x", 0.5), ("q", 0.5), ("k", 0.5), ("geo", 0.5), ("geo", 0)])
@pytest.mark.parametrize("normalization", NORMALIZATION)
def test_nan_propagates(name: str, place: float, normalization: str) -> None:
    """To the pixels that see it and to no others: the prior's first tap is outside of the image at its border."""
    inputs = make(n=2, c=20, h=9, w=10, dtype=torch.float32)
    tensor = getattr(inputs, name)
    tensor.view(-1)[int(place * tensor.numel())] = float("nan")
    results = [gradients(f, inputs, torch.ones_like(inputs.x), normalization=normalization)
               for f in (ops.local_relation, reference.local_relation)]  # fmt: skip
    (actual, found), (wanted, wanted_gradients) = results
    assert wanted.isnan().any()
    assert torch.equal(actual.isnan(), wanted.isnan())
    for a, b in zip(found, wanted_gradients, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


@needs_kernels
@pytest.mark.parametrize("composability", COMPOSABILITY)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 3e38], ids=str)
def test_infinite_values(composability: str, value: float) -> None:
    inputs = make(n=2, c=20, h=9, w=10, dtype=torch.float32)
    inputs.k[0, 1, 4, 5] = value
    inputs.q[1, 2, 3, 3] = value
    y = ops.local_relation(*inputs, composability=composability)
    wanted = reference.local_relation(*inputs, composability=composability)
    assert torch.equal(y.isfinite(), wanted.isfinite())
    torch.testing.assert_close(y[wanted.isfinite()], wanted[wanted.isfinite()])
    assert (y == wanted.new_tensor(0)).sum() == 0


def test_masked_taps() -> None:
    """A prior of minus infinity removes a tap, whatever its position."""
    inputs = make(n=1, c=8, h=5, w=5, size=3, dtype=torch.float32)
    assert inputs.geo is not None
    inputs.geo.fill_(float("-inf"))
    inputs.geo[:, 1, 1] = 0
    torch.testing.assert_close(ops.local_relation(*inputs), inputs.x)


@needs_kernels
@pytest.mark.parametrize("composability", COMPOSABILITY)
def test_corners_without_a_tap(composability: str) -> None:
    """The result is NaN, a mean over nothing, exactly where all taps that the prior leaves lie outside the image."""
    inputs = make(n=2, c=20, h=6, w=7, size=5, dtype=torch.float32)
    assert inputs.geo is not None
    inputs.geo.fill_(float("-inf"))
    inputs.geo[:, 0, 0] = 0
    y = ops.local_relation(*inputs, composability=composability)
    wanted = reference.local_relation(*inputs, composability=composability)
    assert wanted[..., :2, :].isnan().all()
    torch.testing.assert_close(y, wanted, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_result_has_the_widest_dtype(dtype: torch.dtype) -> None:
    inputs = make(dtype=dtype)
    y = ops.local_relation(inputs.x, inputs.q.bfloat16(), inputs.k, inputs.geo)
    assert y.dtype == torch.promote_types(dtype, torch.bfloat16)
    wanted = reference.local_relation(inputs.x.double(), inputs.q.bfloat16().double(), inputs.k.double(), inputs.geo)
    assert relative_error(y, wanted) <= {torch.float32: 1e-6, torch.float64: 1e-12}.get(y.dtype, 1e-2)


def test_autocast_computes_logits_in_float32() -> None:
    inputs = make(c=16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.local_relation(*inputs)
        narrow = ops.local_relation(inputs.x.bfloat16(), inputs.q.bfloat16(), inputs.k.bfloat16(), inputs.geo)
    wanted = reference.local_relation(*(None if t is None else t.double() for t in inputs))
    assert relative_error(y, wanted) <= 1e-6
    assert narrow.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_function_transforms() -> None:
    """vmap, gradients for each image, and the Jacobian with respect to the queries, by torch.func."""
    x, q, k, geo = make(n=6, c=12, dtype=torch.float32)
    x, q, k = (t.reshape(3, 2, *t.shape[1:]) for t in (x, q, k))

    def results(operator: Any) -> list[Tensor]:
        def loss(*inputs: Tensor) -> Tensor:
            return operator(*inputs).square().sum()  # type: ignore[no-any-return]

        return [
            torch.func.vmap(operator, in_dims=(None, 0, None, None))(x[0], q, k[0], geo),
            *torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2, 3)), in_dims=(0, 0, 0, None))(x, q, k, geo),
            torch.func.jacrev(lambda q: operator(x[0], q, k[0], geo).mean((2, 3)))(q[0]),
        ]

    for a, b in zip(results(ops.local_relation), results(reference.local_relation), strict=True):
        torch.testing.assert_close(a, b)


@needs_kernels
def test_compiles_as_one_graph() -> None:
    leaves = [t.requires_grad_() for t in make(dtype=torch.float32, channels_last=True) if t is not None]
    y = torch.compile(ops.local_relation, backend="aot_eager", fullgraph=True)(*leaves)
    eager = ops.local_relation(*leaves)
    assert torch.equal(y, eager)
    assert y.stride() == eager.stride()
    for a, b in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(eager.sum(), leaves), strict=True):
        assert torch.equal(a, b)


def test_import_does_not_import_the_compiler() -> None:
    """torch._dynamo takes longer to import than everything else."""
    program = "import robust_lr, sys; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 12, 6)}, r"x must have 4 dimensions .* got \[2, 12, 6\]"),
        ({"x": torch.zeros(2, 0, 6, 5)}, r"x must have at least one channel, row and column, got \[2, 0, 6, 5\]"),
        ({"x": torch.zeros(2, 12, 6, 5).long()}, "x must be a floating-point tensor, got torch.int64"),
        ({"k": torch.zeros(2, 2, 6, 5, device="meta")}, "k is on meta, but x is on cpu"),
        ({"q": torch.zeros(2, 3, 6, 5)}, "q must have a multiple of 2 channels .* got 3"),
        ({"q": torch.zeros(2, 2, 3, 3)}, r"q must have the shape \[2, 2, 6, 5\] \(stride 1\), got \[2, 2, 3, 3\]"),
        ({"k": torch.zeros(1, 2, 6, 5)}, r"k must have the shape \[2, 2, 6, 5\]"),
        ({"geo": torch.zeros(3, 3, 3)}, r"geo must have the shape \[2, K, K\], got \[3, 3, 3\]"),
        ({"geo": torch.zeros(2, 3, 5)}, r"geo must have the shape \[2, K, K\]"),
        ({"geo": torch.zeros(2, 4, 4)}, "window size must be odd .* got 4"),
        ({"geo": None}, "kernel_size must be given where geo is None"),
        ({"geo": None, "kernel_size": -1}, "window size must be odd and at least 1, got -1"),
        ({"kernel_size": 5}, "kernel_size is 5, but geo has windows of 3"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"channels_per_group": 0}, "channels_per_group must be at least 1, got 0"),
        ({"composability": "cosine"}, "composability must be one of squared_difference, .* got 'cosine'"),
        ({"normalization": "sigmoid"}, "normalization must be one of softmax, none, got 'sigmoid'"),
        ({"border": "reflect"}, "border must be one of mask, zero, got 'reflect'"),
    ],
)  # fmt: skip
def test_wrong_arguments(change: dict[str, Any], words: str) -> None:
    arguments = make(dtype=torch.float32)._asdict() | change
    tensors = [arguments.pop(name) for name in ("x", "q", "k", "geo")]
    for operator in (ops.local_relation, reference.local_relation):
        with pytest.raises(InputError, match=words) as caught:
            operator(*tensors, **arguments)
        assert "\n" not in str(caught.value)


@torch.no_grad()
def test_shapes_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the "meta" device nothing is computed and, without gradients, no kernels are compiled."""
    x = torch.empty(2, 12, 9, 8, dtype=torch.bfloat16, device="meta").contiguous(memory_format=torch.channels_last)
    q, k, geo = (torch.empty(shape, device="meta") for shape in ((2, 2, 5, 4), (2, 2, 9, 8), (2, 7, 7)))
    with torch.enable_grad():
        assert ops.local_relation(x.requires_grad_(), q, k, geo, stride=2).requires_grad
    monkeypatch.setattr(ops, "has_kernels", lambda device: pytest.fail("compiled"))
    y = ops.local_relation(x, q, k, geo, stride=2)
    assert (y.shape, y.dtype) == ((2, 12, 5, 4), torch.float32)
    assert y.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(InputError, match="q must have the shape"):
        ops.local_relation(x, q, k, geo)


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_an_image_without_pixels_is_refused(size):
    x, q, k = torch.zeros(1, 8, *size), torch.zeros(1, 1, *size), torch.zeros(1, 1, *size)
    with pytest.raises(RuntimeError, match="the image has no pixels"):
        torch.ops.robust_lr.local_relation.default(x, q, k, None, 7, 1, 8, 0, True, True)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("border", ["mask", "zero"])
def test_queries_and_keys_in_one_tensor(dtype: torch.dtype, layout: torch.memory_format, border: str) -> None:
    torch.manual_seed(0)
    x, qk = (torch.randn(5, c, 6, 9).to(dtype).to(memory_format=layout).requires_grad_() for c in (20, 6))
    geo = torch.randn(3, 5, 5)
    dy = torch.randn(5, 20, 6, 9).to(dtype)
    y = ops.joined_relation(x, qk, geo, border=border)
    wanted = ops.local_relation(x, *qk.chunk(2, dim=1), geo, border=border)
    assert torch.equal(y, wanted)
    for a, b in zip(torch.autograd.grad(y, (x, qk), dy), torch.autograd.grad(wanted, (x, qk), dy), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride() or layout == torch.channels_last


@needs_kernels
def test_second_gradients_of_queries_and_keys_in_one_tensor() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    weight, geo = torch.randn(4, 4, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return ops.joined_relation(x, torch.einsum("oc,nchw->nohw", weight, x), geo, channels_per_group=2)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)
