import pytest
import torch
from torch import nn

from robust_lr.models.build import build_model
from robust_lr.models.cost import profile
from robust_lr.models.geometry import count_inside, layers, warnings


def described(name, side, **options):
    with torch.device("meta"):
        return layers(build_model(name, **options), torch.empty(1, 3, side, side))


def by_name(found):
    return {layer.name: layer for layer in found}


@pytest.mark.parametrize(
    ("size", "window", "stride", "dilation"), [(7, 5, 1, 1), (14, 7, 2, 1), (2, 5, 1, 1), (9, 3, 1, 2)]
)
def test_taps_are_counted_as_a_convolution_of_ones_does(size, window, stride, dilation):
    padding = window // 2
    ones = torch.ones(1, 1, size)
    expected = nn.functional.conv1d(ones, torch.ones(1, 1, window), None, stride, padding * dilation, dilation)
    assert count_inside(size, expected.shape[2], window, stride, padding, dilation) == expected.flatten().tolist()


def test_layers_have_the_cost_of_the_profile():
    for name in ("resnet26", "lrnet26", "nl26"):
        with torch.device("meta"):
            model, image = build_model(name, width=0.25), torch.empty(1, 3, 64, 64)
            found, whole = layers(model, image), profile(model, image)
        assert sum(layer.multiply_adds for layer in found) == whole.multiply_adds


def test_maps_and_windows_are_those_of_the_paper_at_224_pixels():
    found = by_name(described("lrnet26", 224))
    assert (found["layer1.0.conv2"].input, found["layer1.0.conv2"].window) == ((56, 56), (7, 7))
    assert found["layer2.0.conv2"].output == (28, 28)
    assert found["layer4.1.conv2"].input == (7, 7)
    assert found["layer4.1.conv2"].covers_map  # as in the paper: a window of res5 sees its map
    assert not found["layer3.1.conv2"].covers_map
    assert found["layer1.0.conv1"].kind == "convolution"
    assert not found["layer1.0.conv1"].is_spatial


def test_a_geometry_in_which_nothing_is_local_is_named():
    small = by_name(described("lrnet26", 28))
    assert small["layer1.0.conv2"].input == (7, 7)
    assert small["layer1.0.conv2"].covers_map
    assert small["layer4.1.conv2"].sees_one_pixel
    lines = warnings(list(small.values()))
    assert "layer1.0.conv2" in lines[0]
    assert "single pixel" in lines[1]
    assert warnings(described("resnet26", 224)) == []


def test_the_networks_of_table_9_are_themselves():
    """Windows of res2 and res3 see less than the map, and no spatial layer works on a single pixel."""
    for name, options in (("lrnet26", {"kernel_size": 5}), ("resnet26", {}), ("resnet50", {})):
        found = described(name, 28, stem="stride2", width=0.125, **options)
        for layer in found:
            assert not layer.sees_one_pixel
            if layer.name.startswith(("layer1", "layer2")):
                assert not layer.covers_map, layer
