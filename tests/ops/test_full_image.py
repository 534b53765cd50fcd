import pytest
import torch
from helpers import Largest
from torch import nn

from robust_lr.models.layers.local_relation import FullRelation2d, LocalRelation2d
from robust_lr.ops import full_image
from robust_lr.ops.full_image import offsets
from robust_lr.utils.errors import InputError

VARIANTS = [
    {},
    {"prior": "none"},
    {"channels_per_group": "all"},
    {"channels_per_group": 3, "normalization": "none"},
    {"query_dim": 4, "composability": "product"},
    {"composability": "absolute_difference"},
]


pytestmark = pytest.mark.usefixtures("seeded")


def outcome(layer, x):
    """Return the layer's output and the gradients by the image and by every parameter."""
    x = x.clone().requires_grad_()
    y = layer(x)
    cotangent = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).cos()
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], cotangent)]


def close(found, expected, atol=1e-10):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize(("size", "stride"), [(6, 1), (5, 2), (6, 2), (1, 1)])
def test_the_full_image_is_a_window_that_covers_it(options, size, stride):
    full = FullRelation2d(20, 6, stride, **options).double()
    window = LocalRelation2d(20, 6, 2 * size - 1, stride, **options).double()
    window.load_state_dict(full.state_dict())
    x = torch.rand(2, 20, size, size, dtype=torch.float64)
    # the offsets in a window are kept in fp32, so errors are relative to the largest values
    for found, expected in zip(outcome(full, x), outcome(window, x), strict=True):
        close([found], [expected], atol=max(1e-6, 2e-7 * float(expected.abs().max())))


def test_a_table_holds_the_offsets_of_14_keys_exactly():
    full = FullRelation2d(8, 4, prior="table").double()
    window = LocalRelation2d(8, 4, 27, prior="table").double()
    nn.init.normal_(full.prior.values)
    window.load_state_dict(full.state_dict())
    x = torch.rand(1, 8, 14, 14, dtype=torch.float64)
    close(outcome(full, x), outcome(window, x))


def test_coarse_keys_are_the_means_of_what_they_stand_for():
    layer = FullRelation2d(16, 4, key_stride=3, channels_per_group=8).double()
    x = torch.rand(1, 16, 7, 5, dtype=torch.float64)
    y = torch.zeros(1, 16, 7, 5, dtype=torch.float64)
    blocks = [(slice(i, i + 3), slice(j, j + 3)) for i in (0, 3, 6) for j in (0, 3)]
    means = torch.stack([x[0, :, rows, columns].mean((1, 2)) for rows, columns in blocks])  # [keys, C]
    centers = [(i, j) for i in (1, 4, 6) for j in (1, 3.5)]
    keys = means @ layer.key.weight[:, :, 0, 0].T
    for row in range(7):
        for column in range(5):
            query = layer.query.weight[:, :, 0, 0] @ x[0, :, row, column]
            relative = torch.tensor([[(i - row) / 6, (j - column) / 4] for i, j in centers], dtype=torch.float64)
            prior = layer.prior.value(layer.prior.hidden(relative).relu())
            weights = (prior - (query - keys) ** 2).softmax(0)
            for channel in range(16):
                y[0, channel, row, column] = weights[:, channel // 8] @ means[:, channel]
    torch.testing.assert_close(layer(x), layer.transform(y), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("size", "stride", "key_stride"), [(56, 1, 4), (56, 2, 4), (28, 1, 2), (7, 1, 3), (5, 2, 2)])
def test_offsets_lie_between_output_pixels_and_the_middle_of_keys(size, stride, key_stride):
    values, index = offsets(size, stride, key_stride, torch.device("cpu"))
    blocks = torch.arange(size, dtype=torch.float64).split(key_stride)
    assert index.shape == (-(-size // stride), len(blocks))
    middles = torch.stack([block.mean() for block in blocks])
    expected = (middles - torch.arange(0, size, stride)[:, None]) / (size - 1)
    torch.testing.assert_close(values[index], expected)
    assert len(values.unique()) == len(values)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_chunks_change_nothing(monkeypatch, options):
    layer = FullRelation2d(20, 6, 2, key_stride=2, **options).double()
    x = torch.rand(2, 20, 9, 7, dtype=torch.float64)
    whole = outcome(layer, x)
    monkeypatch.setattr(full_image, "CHUNK", 7 * 3 * 2 * 4 * 5)  # a few pixels at a time, and a rest
    close(outcome(layer, x), whole)


def test_weights_are_never_held_at_once(monkeypatch):
    monkeypatch.setattr(full_image, "CHUNK", 2**13)
    layer = FullRelation2d(16, 16, channels_per_group=8)
    x = torch.rand(2, 16, 20, 20, requires_grad=True)
    with Largest() as largest:
        layer(x).sum().backward()
    images = 2 * 16 * 20 * 20
    weights = 2 * 2 * 400 * 400
    assert largest.values <= max(images, 2**13)
    assert largest.values < weights / 40


def test_what_autograd_keeps_does_not_grow_with_the_chunks(monkeypatch):
    monkeypatch.setattr(full_image, "CHUNK", 2**12)
    layer = FullRelation2d(8, 8)
    x = torch.rand(1, 8, 24, 24, requires_grad=True)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert sum(kept.values()) < 4 * 24**4 / 8  # the weights alone, one group in fp32, are eight times as much


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key_stride": 0}, "key_stride = 0: must be at least 1"),
        ({"stride": 0}, "stride = 0: must be at least 1"),
        ({"prior": "learnt"}, "unknown prior 'learnt'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        FullRelation2d(8, 8, **options)


def test_images_of_other_types_keep_theirs():
    layer = FullRelation2d(8, 8).bfloat16()
    assert layer(torch.rand(1, 8, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_second_gradients_do_not_depend_on_the_chunks(monkeypatch):
    layer = FullRelation2d(8, 4, channels_per_group=4).double()
    x = torch.rand(1, 8, 5, 5, dtype=torch.float64, requires_grad=True)

    def second():
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    whole = second()
    monkeypatch.setattr(full_image, "CHUNK", 200)
    close([second()], [whole])
