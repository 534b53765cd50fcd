"""The stem as one operator, compared with its separate steps in float64, and in the network."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_local_relation import BORDER, COMPOSABILITY, NORMALIZATION, relative_error
from torch import Tensor, nn

from robust_lr import build_model
from robust_lr.models.folding import fold
from robust_lr.ops import library
from robust_lr.ops.stem_relation import compose_stem, covers, stem_relation

needs_kernels = pytest.mark.skipif(not library.load(), reason="no compiled kernels")
TOLERANCE = {torch.float32: (1e-6, 5e-6), torch.float64: (1e-13, 1e-12)}


def make(
    n: int = 2, inputs: int = 3, c: int = 12, h: int = 7, w: int = 9, m: int = 8, d: int = 1, size: int = 3,
    dtype: torch.dtype = torch.float64, channels_last: bool = False, seed: int = 0,
) -> list[Tensor]:  # fmt: skip
    """Image, transform, query, key and prior, of normal values (half of all x are cut off), scaled as in the layer."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-c // m)
    shapes = (n, inputs, h, w), (c, inputs + 1), (groups * d, c), (groups * d, c), (groups, size, size)
    scales = (1, 1, c**-0.5, c**-0.5, 1)
    tensors = [
        (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return tensors


def results(operator: Any, tensors: list[Tensor], stride: int, **options: Any) -> list[Tensor]:
    """The result and all gradients, for a gradient of the result that is the same for each image."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = operator(*leaves, stride=stride, **options)
    dy = torch.randn(y.shape[1:], generator=torch.Generator().manual_seed(1)).to(y.dtype).expand(y.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def assert_matches_oracle(
    tensors: list[Tensor], stride: int, operator: Any = stem_relation, tolerances: Any = TOLERANCE, **options: Any
) -> None:
    tolerance, gradient_tolerance = tolerances[tensors[0].dtype]
    y, *gradients = results(operator, tensors, stride, **options)
    wanted, *wanted_gradients = results(compose_stem, [t.double() for t in tensors], stride, **options)
    _, *plain_gradients = results(compose_stem, tensors, stride, **options)
    assert relative_error(y, wanted) <= tolerance
    # Gradients may cancel almost completely, so the tolerance also depends on the largest one, and on the error step by
    # step.
    scale = max(float(g.norm()) for g in wanted_gradients)
    for a, b, plain in zip(gradients, wanted_gradients, plain_gradients, strict=True):
        allowed = gradient_tolerance * max(float(b.norm()), 0.1 * scale)
        assert float((a.double() - b).norm()) <= max(allowed, 4 * float((plain.double() - b).norm()))


@needs_kernels
@pytest.mark.parametrize("composability", COMPOSABILITY)
@pytest.mark.parametrize("normalization", NORMALIZATION)
@pytest.mark.parametrize("border", BORDER)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_matches_oracle(composability: str, normalization: str, border: str, dtype: torch.dtype) -> None:
    for stride, inputs, d, channels_last in ((1, 3, 1, True), (2, 1, 2, False), (2, 3, 1, False)):
        tensors = make(3, inputs, 20, 19, 37, d=d, size=7, dtype=dtype, channels_last=channels_last)
        assert_matches_oracle(
            tensors, stride, channels_per_group=8, composability=composability, normalization=normalization,
            border=border,
        )  # fmt: skip


@needs_kernels
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    n=st.integers(1, 5), inputs=st.integers(1, 4), c=st.integers(1, 80), h=st.integers(1, 12), w=st.integers(1, 40),
    m=st.integers(1, 17), d=st.integers(1, 3), size=st.sampled_from((1, 3, 7)), stride=st.integers(1, 3),
    dtype=st.sampled_from(list(TOLERANCE)), channels_last=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_matches_oracle_at_any_shape(
    n: int, inputs: int, c: int, h: int, w: int, m: int, d: int, size: int, stride: int, dtype: torch.dtype,
    channels_last: bool, seed: int,
) -> None:  # fmt: skip
    """Also with more groups than lanes, and with images that share lanes."""
    assert_matches_oracle(
        make(n, inputs, c, h, w, m, d, size, dtype, channels_last, seed), stride, channels_per_group=m
    )


@needs_kernels
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_right_twice(stride: int) -> None:
    tensors = [t.requires_grad_() for t in make(n=1, c=5, h=4, w=3)]
    assert torch.autograd.gradcheck(lambda *t: stem_relation(*t, stride=stride), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: stem_relation(*t, stride=stride), tensors)


@needs_kernels
@pytest.mark.parametrize("stride", [1, 2])
def test_results_do_not_depend_on_batch_threads_or_layout(stride: int) -> None:
    tensors = make(5, c=20, h=19, w=17, size=7, dtype=torch.float32)
    first = results(stem_relation, tensors, stride)
    torch.set_num_threads(3)
    try:
        again = results(stem_relation, tensors, stride)
    finally:
        torch.set_num_threads(1)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    last = tensors[0].contiguous(memory_format=torch.channels_last)
    for a, b in zip(first, results(stem_relation, [last, *tensors[1:]], stride), strict=True):
        assert torch.equal(a, b)
    for order in ([3], [4, 0]):
        some = results(stem_relation, [tensors[0][order], *tensors[1:]], stride)
        for a, b in zip(first[:2], some[:2], strict=True):
            assert torch.equal(a[order], b)


@needs_kernels
def test_only_wanted_gradients() -> None:
    """Attacks need the image's gradient, training those of the weights; each is the same as if all were computed."""
    tensors = make(dtype=torch.float32)
    every = results(stem_relation, tensors, 2)[1:]
    dy = torch.randn(12, 4, 5, generator=torch.Generator().manual_seed(1)).expand(2, -1, -1, -1)
    for wanted in ([0], [1, 2, 3, 4], [4]):
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        found = torch.autograd.grad(stem_relation(*leaves, stride=2), [leaves[i] for i in wanted], dy)
        for i, a in zip(wanted, found, strict=True):
            assert torch.equal(a, every[i])


@needs_kernels
def test_nan_propagates() -> None:
    image, *weights = make(n=2, c=20, h=9, w=10, dtype=torch.float32)
    image[1, 0, 4, 5] = float("nan")
    found, wanted = (results(operator, [image, *weights], 2) for operator in (stem_relation, compose_stem))
    assert wanted[0].isnan().any()
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.isnan(), b.isnan())


@needs_kernels
def test_without_a_prior() -> None:
    image, *weights, _ = make()
    assert torch.autograd.gradcheck(
        lambda *t: stem_relation(*t, None, kernel_size=5, stride=2), [t.requires_grad_() for t in (image, *weights)]
    )
    wanted = compose_stem(image, *weights, None, kernel_size=5, stride=2)
    torch.testing.assert_close(stem_relation(image, *weights, None, kernel_size=5, stride=2), wanted)


def networks(**options: Any) -> tuple[nn.Module, nn.Module]:
    """An LR-Net whose batch norms are not the identity, and a copy whose stem runs step by step because of a hook."""
    torch.manual_seed(0)
    fused = build_model("lrnet26", num_classes=3, width=0.2, **options)
    for norm in fused.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    plain = copy.deepcopy(fused)
    plain.get_submodule("relu1").register_forward_hook(lambda *_: None)
    return fused, plain


@needs_kernels
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "folded"])
@pytest.mark.parametrize(("stem", "channels", "prior"), [("imagenet", 3, "network"), ("small", 1, "none")])
def test_network_takes_it_and_computes_the_same(
    mode: str, stem: str, channels: int, prior: str, create_graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients (also those that can be differentiated again) and running statistics, in float64."""
    calls: list[object] = []
    one = torch.ops.robust_lr.stem_relation.default
    monkeypatch.setattr(torch.ops.robust_lr.stem_relation, "default", lambda *a: (calls.append(a), one(*a))[1])
    x = torch.rand(3, channels, 33, 30, dtype=torch.float64).requires_grad_()
    found = []
    for network in networks(stem=stem, in_channels=channels, prior=prior):
        if mode == "folded":
            hooks = network.get_submodule("relu1")._forward_hooks
            network = fold(network)  # type: ignore[arg-type]
            network.get_submodule("relu1")._forward_hooks = hooks
        network.double().train(mode == "train")
        y = network(x)
        wanted = [x, *(p for p in network.parameters() if p.requires_grad)]
        statistics = [b for name, b in network.named_buffers() if name.startswith("bn1")]
        found.append([y, *torch.autograd.grad(y.square().sum(), wanted, create_graph=create_graph), *statistics])
    assert len(calls) == 1
    for a, b in zip(*found, strict=True):
        assert float((a - b).detach().double().norm()) <= 1e-9 * max(float(b.detach().double().norm()), 1.0)


@needs_kernels
def test_covers() -> None:
    assert covers(torch.zeros(1, 3, 8, 8))
    for other in (torch.zeros(1, 5, 8, 8), torch.zeros(1, 3, 8, 8).bfloat16(), torch.zeros(1, 3, 1, 1)):
        assert not covers(other)
    with torch.autocast("cpu"):
        assert not covers(torch.zeros(1, 3, 8, 8))
    seen: list[bool] = []
    torch.func.vmap(lambda x: (seen.append(covers(x)), x)[1])(torch.zeros(2, 1, 3, 8, 8))
    assert seen == [False]


@needs_kernels
def test_network_compiles_as_one_graph() -> None:
    """Under the compiler the stem runs step by step, because the compiler can fuse the steps."""
    network, _ = networks(stem="small", in_channels=1)
    network.eval()
    x = torch.rand(2, 1, 9, 9)
    y = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, network(x), rtol=1e-4, atol=1e-4)


def test_network_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = networks(stem="small", in_channels=1)
    x = torch.rand(2, 1, 9, 9)
    wanted = network.eval()(x)
    monkeypatch.setattr("robust_lr.ops.local_relation.has_kernels", lambda device: False)
    assert not covers(x)
    torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)
