"""The convolution with bias, shortcut and ReLU in one: against float64, and as a layer."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_local_relation import relative_error
from torch import Tensor

from robust_lr import build_model
from robust_lr.models.folding import fold, pack_weights
from robust_lr.models.layers.fused_conv import FusedConv2d, has_bfloat16, has_wide_vectors
from robust_lr.ops import library
from robust_lr.ops.compiler import Compiler

needs_kernels = pytest.mark.skipif(not library.load(), reason="no compiled kernels")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def layer(
    inputs: int = 5, outputs: int = 6, size: int = 3, stride: int = 1, padding: int = 1, **options
) -> FusedConv2d:
    torch.manual_seed(0)
    return FusedConv2d(inputs, outputs, size, stride, padding, **options).requires_grad_(False).eval()


def composed(conv: FusedConv2d, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)
    y = y if shortcut is None else y + shortcut
    return y.relu() if conv.relu else y


def last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


@needs_kernels
@given(
    n=st.integers(0, 11),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 70),
    size=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    relu=st.booleans(),
    has_shortcut=st.booleans(),
    has_bias=st.booleans(),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=200, deadline=None)
def test_matches_the_oracle(
    n, inputs, outputs, size, stride, padding, height, width, relu, has_shortcut, has_bias, channels_last, dtype
):
    height, width = (max(side, size - 2 * padding) for side in (height, width))
    conv = layer(inputs, outputs, size, stride, padding, bias=has_bias).double()
    conv.relu = relu
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, inputs, height, width, generator=generator).double()
    shortcut = dy = torch.randn(composed(conv, x).shape, generator=generator).double()

    def results(operator, dtype):
        leaves = [t.to(dtype) for t in (x, shortcut)]
        leaves = [(last(t) if channels_last else t).detach().requires_grad_() for t in leaves]
        conv.to(dtype)
        y = operator(leaves[0], leaves[1] if has_shortcut else None)
        return [y.detach(), *torch.autograd.grad(y, leaves if has_shortcut else leaves[:1], dy.to(dtype))]

    wanted = results(lambda *t: composed(conv, *t), torch.float64)
    found = results(conv, dtype)
    if relu:  # rounding may turn a ReLU on or off: leave those pixels out
        before = F.conv2d(x, conv.double().weight, conv.bias, conv.stride, conv.padding)
        dy = dy.masked_fill((before + shortcut if has_shortcut else before).abs() < 1e-5, 0)
        wanted, found = results(lambda *t: composed(conv, *t), torch.float64), results(conv, dtype)
    # Rounding is relative to the terms of a sum: leave out inputs where they cancel to next to nothing in all pixels.
    terms = x.abs().requires_grad_()
    sums = F.conv2d(terms, conv.double().weight.abs(), None, conv.stride, conv.padding)
    for whole, b in zip((sums.detach(), torch.autograd.grad(sums, terms, dy.abs())[0]), wanted[:2], strict=True):
        assume(not b.any() or float(whole.norm()) <= 50 * float(b.norm()))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, b) <= TOLERANCE[dtype]


@needs_kernels
@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "stride"),
    [(20, 50, 3, 1), (8, 8, 5, 1), (8, 8, 5, 2), (16, 100, 1, 1), (16, 32, 1, 2), (3, 20, 7, 3)],
)
def test_depends_neither_on_the_batch_nor_on_the_number_of_threads(inputs, outputs, size, stride):
    conv, x = layer(inputs, outputs, size, stride, size // 2), last(torch.rand(19, inputs, 7, 5))
    dy = last(torch.randn(conv(x).shape))

    def results(x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y = conv(x)
        return y.detach(), torch.autograd.grad(y, x, dy)[0]

    together = results(x, dy)
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            for n in (1, 2, 5, 11):  # kernels take images of a batch eight or four at a time
                parts = zip(*map(results, x.split(n), dy.split(n)), strict=True)
                assert all(torch.equal(torch.cat(part), whole) for part, whole in zip(parts, together, strict=True))
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_nan_is_not_cut_off():
    conv = layer()
    conv.relu = True
    x = torch.rand(1, 5, 8, 8, requires_grad=True)
    with torch.no_grad():
        x[0, 2, 4, 4] = float("nan")
    y = conv(x)
    assert y.isnan().any(dim=1).sum() == 9
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert not gradient.isnan().any()


@needs_kernels
def test_follows_its_weights(monkeypatch):
    conv, x = layer(), torch.rand(2, 5, 4, 4)
    packed = []
    original = torch.ops.robust_lr.pack_convolution.default
    monkeypatch.setattr(torch.ops.robust_lr.pack_convolution, "default", lambda *a: packed.append(a) or original(*a))
    for _ in range(3):
        conv(x)
    assert len(packed) == 2  # for the result and for the gradient, once
    other = layer(bias=True)
    other.weight.neg_()
    conv.load_state_dict(other.state_dict())
    torch.testing.assert_close(conv(x), composed(other, x))
    twin = copy.deepcopy(conv)
    twin.weight.mul_(2)
    torch.testing.assert_close(twin(x), composed(twin, x))
    torch.testing.assert_close(conv(x), composed(conv, x))
    conv.double()
    torch.testing.assert_close(conv(x.double()), composed(conv, x.double()))


@pytest.mark.parametrize("relu", [False, True])
def test_has_second_gradients(relu):
    conv = layer().double()
    conv.relu = relu
    x, shortcut = (torch.randn(2, c, 4, 4, dtype=torch.float64, requires_grad=True) for c in (5, 6))
    assert torch.autograd.gradcheck(conv, (x, shortcut))
    assert torch.autograd.gradgradcheck(conv, (x, shortcut))


@pytest.mark.parametrize(
    "options", [{"groups": 5, "outputs": 10}, {"dilation": 2}, {"padding_mode": "circular"}], ids=str
)
def test_other_convolutions_are_pytorch_s(options, monkeypatch):
    monkeypatch.setattr("robust_lr.models.layers.fused_conv._Fused", None)  # fails if asked
    conv, x = layer(**options), torch.randn(2, 5, 6, 6)
    plain = torch.nn.Conv2d.forward(conv, x)
    conv.relu = True
    torch.testing.assert_close(conv(x), plain.relu())
    torch.testing.assert_close(conv(x, plain.clone()), (2 * plain).relu())


def test_kernel_is_left_out_where_it_has_no_place(monkeypatch):
    """Where weights are trained, under autocast, in torch.func and without kernels."""
    monkeypatch.setattr("robust_lr.models.layers.fused_conv._Fused", None)  # fails if asked
    conv, x = layer(), torch.rand(2, 5, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    torch.func.vmap(torch.func.grad(lambda image: conv(image[None]).sum()))(x)
    conv.requires_grad_()(x)
    conv.requires_grad_(False)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("robust_lr.models.layers.fused_conv.has_wide_vectors", lambda: False)
        conv(x)
    monkeypatch.setattr("robust_lr.ops.local_relation.has_kernels", lambda device: False)
    conv(x)


@pytest.mark.parametrize(
    ("macros", "wide"), [({"__AVX512F__": "1", "__AVX2__": "1"}, True), ({"__SSE2__": "1"}, False)]
)
def test_narrow_vectors_are_left_to_pytorch(macros, wide, monkeypatch):
    monkeypatch.setattr(library, "find_compiler", lambda: Compiler(("c++",), (), macros))
    assert has_wide_vectors.__wrapped__() is wide


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, 5, 5)}, "channels-last"),
        ({"x": last(torch.zeros(2, 4, 5, 5)).double()}, "dtype of x"),
        ({"x": last(torch.zeros(2, 4, 5, 5)).half(), "packed": torch.zeros(1).half()}, "float32, float64 or bfloat16"),
        ({"packed": torch.zeros(7)}, "of another convolution"),
        ({"bias": torch.zeros(5)}, "bias"),
        ({"shortcut": last(torch.zeros(2, 6, 4, 5))}, "like the result"),
        ({"stride": 0}, "out of range"),
        ({"padding": -1}, "out of range"),
        ({"x": last(torch.zeros(2, 4, 1, 1)), "padding": 0}, "smaller than the kernel"),
    ],
)
def test_operator_refuses_what_does_not_fit(change, message):
    weight = torch.zeros(6, 4, 3, 3)
    arguments = {
        "x": last(torch.zeros(2, 4, 5, 5)),
        "packed": torch.ops.robust_lr.pack_convolution(weight, False),
        "bias": None,
        "shortcut": None,
        "outputs": 6,
        "kernel_size": 3,
        "stride": 1,
        "padding": 1,
        "relu": True,
    }
    torch.ops.robust_lr.convolution(**arguments)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.robust_lr.convolution(**{**arguments, **change})


@needs_kernels
@pytest.mark.parametrize(
    ("dy", "sizes", "message"),
    [
        (torch.zeros(2, 6, 5, 5), (4, 5, 5, 3, 1, 1), "channels-last"),
        (last(torch.zeros(2, 6, 5, 5)), (4, 6, 5, 3, 1, 1), "size that the convolution gives"),
        (last(torch.zeros(2, 6, 5, 5)), (40, 5, 5, 3, 1, 1), "of another convolution"),
        (last(torch.zeros(2, 6, 5, 5)), (4, 5, 5, 3, 0, 1), "out of range"),
    ],
)
def test_gradient_refuses_what_does_not_fit(dy, sizes, message):
    packed = torch.ops.robust_lr.pack_convolution(torch.zeros(6, 4, 3, 3), True)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.robust_lr.convolution_gradient(dy, packed, None, None, *sizes)


needs_bfloat16 = pytest.mark.skipif(
    not (library.load() and has_wide_vectors() and has_bfloat16()), reason="no products of bfloat16 here"
)


@needs_bfloat16
@pytest.mark.parametrize("inputs", [1, 2, 13, 40])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("relu", [False, True])
def test_bfloat16_rounds_elements_and_sums_in_float32(inputs, size, stride, relu):
    conv = layer(inputs, 35, size, stride, size // 2, bias=True)
    conv.lowered, conv.relu = True, relu
    x = torch.randn(2, inputs, 9, 7).bfloat16()
    shortcut = dy = torch.randn(conv(x).shape).bfloat16()
    twin = copy.deepcopy(conv).double()
    twin.weight.copy_(conv.weight.bfloat16())
    found, wanted = [], []
    for operator, dtype, results in ((conv, torch.bfloat16, found), (lambda *t: composed(twin, *t), None, wanted)):
        leaves = [t.detach().to(dtype or torch.float64, copy=True).requires_grad_() for t in (x, shortcut)]
        y = operator(*leaves)
        results += [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.bfloat16
        # a ReLU may turn on or off by rounding, where its result is next to nothing
        assert relative_error(a, b) <= (0.02 if relu else 2**-8)


@needs_bfloat16
def test_bfloat16_converts_what_it_gets_and_gradients_back():
    conv, x = layer(), torch.randn(2, 5, 4, 4, requires_grad=True)
    conv.lowered = True
    y, again = conv.forked(x)
    assert y.dtype == again.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad((y.sum() + again.sum()).float(), x)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(conv(x), conv.plainly(x.bfloat16()), rtol=0.02, atol=0.02)


@needs_kernels
@pytest.mark.parametrize("stride", [1, 2])
def test_one_pass_sums_both_paths_and_takes_the_gradient_of_the_relu(stride):
    first, second = layer(5, 8), layer(8, 6, stride=stride)
    first.relu = first.premasked = second.rectified = True
    for conv in (first, second):
        conv.double()
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    dy, dz = torch.randn(second(first(x)).shape).double(), torch.randn(first(x).shape).double()

    def of_both(y, z):
        return torch.autograd.grad((y * dy).sum() + (z * dz).sum(), x)[0]

    hidden = composed(first, x)
    torch.testing.assert_close(of_both(*second.forked(first(x))), of_both(composed(second, hidden), hidden))
    found, wanted = (torch.autograd.grad(y, x, dy)[0] for y in (second(first(x)), composed(second, composed(first, x))))
    torch.testing.assert_close(found, wanted)
    found, wanted = (torch.autograd.grad(z, x, dz)[0] for z in (second.forked(first(x))[1], composed(first, x)))
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradgradcheck(lambda x: sum(t.square().sum() for t in second.forked(first(x))), x)


@needs_kernels
def test_weights_that_were_packed_ahead_are_not_packed_again():
    """What a process packs before it forks, its children share."""
    folded = fold(build_model("lrnet26", width=0.125, stem="small", num_classes=10))
    pack_weights(folded)
    convolutions = [module for module in folded.modules() if isinstance(module, FusedConv2d)]
    before = [conv._packed for conv in convolutions]
    x = torch.rand(2, 3, 16, 16).requires_grad_()
    torch.autograd.grad(folded(x).sum(), x)
    assert len(convolutions) > 20
    assert all(conv._packed is packed for conv, packed in zip(convolutions, before, strict=True))
