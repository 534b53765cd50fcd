from functools import partial
from math import inf, nan

import pytest
import torch
from torch import nn

from robust_lr.models.layers.basic import Normalize
from robust_lr.models.layers.geometric_prior import FixedPrior, GeometricPrior
from robust_lr.models.layers.local_relation import FullRelation2d, LocalRelation2d
from robust_lr.ops import reference
from robust_lr.utils.errors import InputError


def test_normalize_subtracts_the_mean_and_divides_by_std_per_channel():
    x = torch.rand(2, 3, 4, 5)
    out = Normalize([0.1, 0.2, 0.3], [1.0, 2.0, 4.0])(x)
    for channel, (mean, std) in enumerate([(0.1, 1.0), (0.2, 2.0), (0.3, 4.0)]):
        torch.testing.assert_close(out[:, channel], (x[:, channel] - mean) / std)


def test_normalize_travels_with_the_weights():
    other = Normalize([0.0], [1.0])
    other.load_state_dict(Normalize([0.5], [0.25]).state_dict())
    assert other(torch.ones(1, 1, 1, 1)).item() == 2.0


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3, 4, 4), (2, 4, 3, 4)])
def test_normalize_names_the_shape_of_images_that_do_not_fit(shape):
    with pytest.raises(InputError, match=r"takes \[N, 3, H, W\]"):
        Normalize([0.0] * 3, [1.0] * 3)(torch.rand(shape))


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.5, 0.5], [1.0]), ([0.5], [0.0]), ([0.5], [-1.0]), ([0.5, nan], [1.0, 1.0]), ([0.5], [nan]), ([inf], [1.0])],
)
def test_normalize_refuses_statistics_that_cannot_be(mean, std):
    with pytest.raises(InputError, match="std > 0"):
        Normalize(mean, std)


def test_prior_has_one_value_for_each_group_and_offset_row_by_row():
    prior = GeometricPrior(3, 5)
    values = prior()
    assert values.shape == (3, 5, 5)
    for row, dy in enumerate([-1.0, -0.5, 0.0, 0.5, 1.0]):
        for column, dx in enumerate([-1.0, -0.5, 0.0, 0.5, 1.0]):
            by_hand = prior.value(prior.hidden(torch.tensor([dy, dx])).relu())
            torch.testing.assert_close(values[:, row, column], by_hand)
    assert prior.hidden.weight.shape == (3, 2)
    assert prior.value.weight.shape == (3, 3)


def test_prior_of_a_single_pixel_sits_at_the_center():
    prior = GeometricPrior(2, 1)
    torch.testing.assert_close(prior()[:, 0, 0], prior.value(prior.hidden(torch.zeros(2)).relu()))


def test_prior_stays_in_fp32_under_autocast():
    prior = GeometricPrior(4, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = prior()
    assert torch.equal(under, prior())
    assert under.dtype == torch.float32


def test_fixed_prior_keeps_values_of_its_own_without_their_history():
    values = GeometricPrior(2, 3)()
    fixed = FixedPrior(values)
    before = values.detach().clone()
    with torch.no_grad():
        values.add_(1)
    assert torch.equal(fixed(), before)
    assert not fixed().requires_grad
    assert "values" in fixed.state_dict()


@pytest.mark.parametrize(
    ("sizes", "operator"),
    [
        ({}, {}),
        ({}, {"stride": 2}),
        ({"kernel_size": 3}, {"channels_per_group": 4, "border": "zero"}),
        ({"query_dim": 4}, {"composability": "product"}),
        ({}, {"composability": "absolute_difference", "normalization": "none"}),
    ],
)
def test_layer_is_its_transforms_around_the_operator(sizes, operator):
    layer = LocalRelation2d(20, 6, **sizes, **operator)
    x = torch.rand(2, 20, 9, 8)
    stride = operator.get("stride", 1)
    query = nn.functional.conv2d(x, layer.query.weight, stride=stride)
    key = nn.functional.conv2d(x, layer.key.weight)
    y = reference.local_relation(x, query, key, layer.prior(), **{"channels_per_group": 8} | operator)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(y, layer.transform.weight), rtol=1e-4, atol=1e-5)
    assert layer(x).shape == (2, 6, -(-9 // stride), -(-8 // stride))


@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 13])
def test_stride_two_halves_rounding_up_like_a_padded_convolution(size):
    x = torch.rand(1, 8, size, size)
    out = LocalRelation2d(8, 8, stride=2)(x)
    assert out.shape == nn.functional.conv2d(x, torch.zeros(8, 8, 7, 7), stride=2, padding=3).shape


def test_last_group_may_be_short():
    layer = LocalRelation2d(100, 4, channels_per_group=8)
    assert layer.query.out_channels == layer.key.out_channels == layer.prior().shape[0] == 13
    x = torch.rand(1, 100, 4, 4)
    y = reference.local_relation(x, layer.query(x), layer.key(x), layer.prior(), channels_per_group=8)
    torch.testing.assert_close(layer(x), layer.transform(y), rtol=1e-4, atol=1e-5)


def test_a_lone_layer_starts_with_soft_weights():
    layer = LocalRelation2d(400, 8)
    for transform in (layer.query, layer.key):
        assert transform.weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
        assert transform.bias is None
    assert layer.transform.bias is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 4}, "kernel_size = 4: an odd number"),
        ({"kernel_size": -1}, "kernel_size = -1"),
        ({"stride": 0}, "stride = 0: must be at least 1"),
        ({"channels_per_group": 0}, "channels_per_group = 0: must be at least 1"),
        ({"query_dim": -2}, "query_dim = -2: must be at least 1"),
        ({"appearance_scale": 0.0}, "appearance_scale = 0.0: must be positive and finite"),
        ({"appearance_scale": float("inf")}, "appearance_scale = inf: must be positive and finite"),
    ],
)
def test_layer_refuses_sizes_that_cannot_be(options, words):
    with pytest.raises(InputError, match=words):
        LocalRelation2d(8, 8, **options)


@pytest.mark.parametrize("kind", [LocalRelation2d, FullRelation2d])
def test_sharing_among_all_channels_is_one_group_of_them(kind):
    layer = kind(20, 6, channels_per_group="all")
    assert layer.channels_per_group == 20
    assert layer.query.out_channels == layer.key.out_channels == layer.prior.value.out_features == 1
    x = torch.rand(2, 20, 7, 7)
    for channels_per_group in (20, 64):
        other = kind(20, 6, channels_per_group=channels_per_group)
        other.load_state_dict(layer.state_dict())
        torch.testing.assert_close(other(x), layer(x))
    channels = torch.eye(20)[..., None, None]
    layer.transform.weight = nn.Parameter(channels)
    same = x[:, :1].expand(-1, 20, -1, -1)
    assert (layer(same) - layer(same)[:, :1]).abs().max() < 1e-6  # one set of weights


@pytest.mark.parametrize("kind", [partial(LocalRelation2d, kernel_size=9), FullRelation2d])
def test_the_dot_product_of_one_component_is_the_product_of_scalars(kind):
    layer = kind(8, 8, query_dim=1, composability="product", prior="none")
    layer.transform.weight = nn.Parameter(torch.eye(8)[..., None, None])
    x = torch.rand(1, 8, 5, 5)
    q, k = layer.query(x).flatten(), layer.key(x).flatten()
    weights = (q[:, None] * k[None]).softmax(1)  # every pixel sees all 25
    torch.testing.assert_close(layer(x).flatten(2)[0], x.flatten(2)[0] @ weights.T)


def test_the_dot_product_of_several_components_is_the_sum_of_their_products():
    layer = LocalRelation2d(8, 8, 9, query_dim=4, composability="product", prior="none")
    layer.transform.weight = nn.Parameter(torch.eye(8)[..., None, None])
    x = torch.rand(1, 8, 5, 5)
    q, k = layer.query(x)[0].flatten(1), layer.key(x)[0].flatten(1)
    torch.testing.assert_close(layer(x).flatten(2)[0], x.flatten(2)[0] @ (q.T @ k).softmax(1).T)


def test_shapes_without_values_are_enough():
    layer = LocalRelation2d(20, 6, stride=2)
    expected = layer(torch.rand(2, 20, 7, 9)).shape
    assert layer.to("meta")(torch.empty(2, 20, 7, 9, device="meta")).shape == expected
