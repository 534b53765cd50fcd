"""The gradient by the image of a convolution: against float64, and in the folded network."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_local_relation import relative_error
from torch import Tensor, nn

from robust_lr import build_model
from robust_lr.models.folding import fold
from robust_lr.models.layers.image_conv import ImageConv2d, takes
from robust_lr.ops import library

needs_kernels = pytest.mark.skipif(not library.load(), reason="no compiled kernels")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def kernel(dy: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor:
    rows = dy.permute(0, 2, 3, 1).contiguous()
    found: Tensor = torch.ops.robust_lr.image_gradient(rows, weight, height, width, stride, padding)
    return found


@needs_kernels
@given(
    n=st.integers(0, 3),
    channels=st.sampled_from([1, 3]),
    outputs=st.integers(1, 20),
    size=st.sampled_from([3, 7]),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    height=st.integers(1, 20),
    width=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150, deadline=None)
def test_matches_the_oracle(n, channels, outputs, size, stride, padding, height, width, dtype):
    height, width = (max(side, size - 2 * padding) for side in (height, width))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, channels, size, size, generator=generator, dtype=dtype)
    y = F.conv2d(torch.zeros(n, channels, height, width, dtype=dtype), weight, None, stride, padding)
    dy = torch.randn(y.shape, generator=generator, dtype=dtype)
    found = kernel(dy, weight, height, width, stride, padding)
    assert found.shape == (n, channels, height, width)
    assert found.dtype == dtype
    wanted = torch.nn.grad.conv2d_input(found.shape, weight.double(), dy.double(), stride, padding)
    assert relative_error(found, wanted) <= TOLERANCE[dtype]


@needs_kernels
def test_depends_neither_on_the_batch_nor_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 3, 7, 7, generator=generator)
    dy = torch.randn(5, 16, 20, 17, generator=generator)
    together = kernel(dy, weight, 40, 33, 2, 3)
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            for image, gradient in zip(dy, together, strict=True):
                assert torch.equal(kernel(image[None], weight, 40, 33, 2, 3)[0], gradient)
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_nan_reaches_just_the_pixels_that_it_comes_from():
    dy = torch.zeros(1, 4, 9, 9)
    dy[0, 1, 4, 4] = float("nan")
    weight = torch.ones(4, 1, 3, 3)
    assert kernel(dy, weight, 9, 9, 1, 1).isnan().sum() == 9


@needs_kernels
@pytest.mark.parametrize(
    ("dy", "weight", "options", "message"),
    [
        ((2, 5, 5, 4), (6, 1, 3, 3), (5, 5, 1, 1), r"contiguous \[N, H, W, C\]"),
        ((2, 5, 5, 4), (4, 1, 3, 3), (6, 5, 1, 1), "size that the convolution gives"),
        ((2, 5, 5, 4), (4, 1, 3, 3), (5, 5, 0, 1), "size that the convolution gives"),
        ((2, 5, 5, 4), (4, 2, 3, 3), (5, 5, 1, 1), "1 or 3 channels"),
        ((2, 5, 5, 4), (4, 1, 5, 5), (5, 5, 1, 2), "kernel of 3 or 7"),
    ],
)
def test_refuses_what_does_not_fit(dy, weight, options, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.robust_lr.image_gradient(torch.zeros(dy), torch.zeros(weight), *options)


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({"kernel_size": 7, "stride": 2, "padding": 3}, True),
        ({"kernel_size": 3, "padding": 1, "bias": False}, True),
        ({"kernel_size": 3, "in_channels": 4}, False),
        ({"kernel_size": 5}, False),
        ({"kernel_size": (3, 7)}, False),
        ({"kernel_size": 3, "stride": (1, 2)}, False),
        ({"kernel_size": 3, "dilation": 2}, False),
        ({"kernel_size": 3, "groups": 3}, False),
        ({"kernel_size": 3, "padding": "same"}, False),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, False),
    ],
)
def test_takes_what_the_kernel_is_made_for(options, taken):
    assert takes(nn.Conv2d(**{"in_channels": 3, "out_channels": 6, **options})) is taken


def convolution() -> ImageConv2d:
    torch.manual_seed(0)
    return ImageConv2d(3, 6, 7, 2, 3).requires_grad_(False).double()


def test_layer_is_the_convolution_and_has_second_gradients():
    conv, x = convolution(), torch.rand(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, 2, 3))
    assert torch.autograd.gradcheck(conv, x)
    assert torch.autograd.gradgradcheck(conv, x)


def test_kernel_is_left_out_where_it_has_no_place(monkeypatch):
    """Where weights are trained, under autocast, in torch.func and without kernels."""
    monkeypatch.setattr("robust_lr.models.layers.image_conv._ImageConvolution", None)  # fails if asked
    conv, x = convolution().float(), torch.rand(2, 3, 8, 9, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    torch.func.vmap(torch.func.grad(lambda image: conv(image[None]).sum()))(x.detach())
    conv(x.detach())
    conv.requires_grad_()(x)
    monkeypatch.setattr("robust_lr.ops.local_relation.has_kernels", lambda device: False)
    conv.requires_grad_(False)(x)


@needs_kernels
@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folded_networks_use_it(stem, channels, monkeypatch):
    asked = []

    def watched(*arguments):
        asked.append(arguments)
        return original(*arguments)

    original = torch.ops.robust_lr.image_gradient.default
    monkeypatch.setattr("robust_lr.models.layers.fused_conv.has_wide_vectors", lambda: True)
    monkeypatch.setattr(torch.ops.robust_lr.image_gradient, "default", watched)
    pixels = {"in_channels": channels, "mean": [0.5] * channels, "std": [1] * channels}
    model = build_model("resnet26", width=0.1, stem=stem, **pixels)
    folded = fold(model.double().eval())
    x = torch.rand(2, channels, 32, 32, dtype=torch.float64, requires_grad=True)
    gradients = [torch.autograd.grad(network(x).square().sum(), x)[0] for network in (model, folded)]
    assert len(asked) == 1
    assert relative_error(gradients[1], gradients[0]) < 1e-9
