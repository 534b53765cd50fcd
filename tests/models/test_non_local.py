import pytest
import torch
from helpers import Largest
from torch.nn import functional as F

from robust_lr.models.layers.non_local import NonLocal2d, NonLocalBlock
from robust_lr.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize(("stride", "key_stride"), [(1, 1), (2, 2), (1, 3)])
def test_every_pixel_is_a_mean_of_all_keys_weighed_by_similarity(stride, key_stride):
    layer = NonLocal2d(6, 4, stride, key_stride=key_stride).double()
    x = torch.rand(2, 6, 7, 5, dtype=torch.float64)
    pooled = F.avg_pool2d(x, key_stride, ceil_mode=True)
    theta = layer.theta(x)
    phi, g = layer.phi(pooled).flatten(2), layer.g(pooled).flatten(2)
    weights = (torch.einsum("nchw,nck->nhwk", theta, phi) / 3**0.5).softmax(-1)
    expected = layer.transform(torch.einsum("nhwk,nck->nchw", weights, g))
    assert layer(x).shape == (2, 4, -(-7 // stride), -(-5 // stride))
    torch.testing.assert_close(layer(x), expected)


def test_weights_are_never_held_at_once():
    layer = NonLocal2d(8, 8)
    x = torch.rand(2, 8, 24, 24, requires_grad=True)
    with Largest() as largest:
        layer(x).sum().backward()
    assert largest.values <= x.numel() < 2 * 24**4 / 50


def test_layers_start_soft_at_any_width():
    for channels in (16, 512):
        layer = NonLocal2d(channels, channels)
        x = torch.randn(1, channels, 4, 4)
        logits = torch.einsum("nchw,ncij->nhwij", layer.theta(x), layer.phi(x)) / (channels // 2) ** 0.5
        assert logits.std() < 2


def test_a_block_starts_as_its_shortcut_once_its_norm_is_zero():
    block = NonLocalBlock(8, key_stride=2)
    torch.nn.init.zeros_(block.last_norm.weight)
    x = torch.rand(2, 8, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("option", ["stride", "key_stride"])
def test_strides_below_one_are_refused(option):
    with pytest.raises(InputError, match=rf"{option} = 0: must be at least 1"):
        NonLocal2d(8, 8, **{option: 0})
