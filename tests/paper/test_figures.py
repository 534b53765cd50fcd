import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from robust_lr.cli import main
from robust_lr.models.build import build_model
from robust_lr.models.checkpoint import load_model, save_weights
from robust_lr.ops import reference
from robust_lr.paper.inspection import compute_compositions, last_layers, learnt_priors, read_image
from robust_lr.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def tiny(**options):
    return build_model("lrnet26", num_classes=3, width=1 / 8, **options)


# Drawings


def test_priors_are_those_of_the_last_layer_of_each_stage_after_softmax():
    model = tiny(kernel_size=5)
    priors = learnt_priors(model)
    assert [*priors] == ["res2", "res3", "res4", "res5"]
    for layer, values in zip((model.layer1, model.layer2, model.layer3, model.layer4), priors.values(), strict=True):
        expected = layer[1].conv2.prior()
        for found, logits in zip(values, expected, strict=True):
            torch.testing.assert_close(found, logits.exp() / logits.exp().sum())


def test_learned_tables_are_priors_too():
    model = tiny(prior="table")
    assert torch.equal(learnt_priors(model)["res2"], torch.full((2, 7, 7), 1 / 49))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet18", {}, "no local relation layers.*give the checkpoint of an LR-Net"),
        ("lrnet26", {"prior": "none"}, "without a geometric prior"),
        ("lrnet26", {"kernel_size": "full"}, "no local relation layers with a window"),
    ],
)
def test_networks_without_priors_are_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        learnt_priors(build_model(name, width=1 / 16, **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prior": "none"},
        {"border": "zero", "kernel_size": 5},
        {"normalization": "none"},
        {"query_dim": 3, "composability": "product", "channels_per_group": "all"},
    ],
    ids=str,
)
@pytest.mark.parametrize("pixel", [(20, 33), (0, 55)])
def test_weights_are_the_aggregation_weights_of_the_layer(options, pixel):
    model = tiny(**options)
    layer = model.layer1[1].conv2
    seen = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    image = torch.rand(3, 40, 56)
    found = compute_compositions(model, image, pixel)[0]
    (x,) = seen
    assert found.cell == (4, 4)
    assert found.center == (pixel[0] // 4, pixel[1] // 4)
    size, radius = layer.kernel_size, layer.kernel_size // 2
    for row in range(size):
        for column in range(size):
            at = (found.center[0] + row - radius, found.center[1] + column - radius)
            value = found.weights[row, column]
            if not (0 <= at[0] < 10 and 0 <= at[1] < 14):
                assert value.isnan() == (layer.border == "mask")
                continue
            only = torch.zeros_like(x)
            only[:, :, at[0], at[1]] = 1  # so that the sum is the weight
            y = reference.local_relation(
                only, layer.query(x), layer.key(x), layer.prior(), kernel_size=size,
                channels_per_group=layer.channels_per_group, composability=layer.composability,
                normalization=layer.normalization, border=layer.border,
            )  # fmt: skip
            channel = found.group * layer.channels_per_group
            torch.testing.assert_close(value, y[0, channel, found.center[0], found.center[1]].detach())


def test_maps_are_those_of_the_group_whose_keys_vary_most_unless_one_is_named():
    model = tiny()
    image = torch.rand(3, 40, 56)
    found = compute_compositions(model, image, (3, 3))
    assert [one.stage for one in found] == ["res2", "res3", "res4", "res5"]
    assert found[1].query.shape == found[1].key.shape == (5, 7)
    named = compute_compositions(model, image, (3, 3), [1, 1, 1, 1])
    assert {one.group for one in named} == {1}
    for chosen, other in zip(found, named, strict=True):
        assert chosen.key.std(correction=0) >= other.key.std(correction=0)
    assert model.training


@pytest.mark.parametrize(
    ("pixel", "groups", "words"),
    [
        ((40, 0), None, r"pixel \(40, 0\): outside the image of 40 rows and 56"),
        ((0, -1), None, "outside"),
        ((0, 0), [0, 0, 0, 99], "group 99: the layer of res5 has groups 0 to 12"),
    ],
)
def test_missing_pixels_and_groups_are_named(pixel, groups, words):
    with pytest.raises(InputError, match=words):
        compute_compositions(tiny(), torch.rand(3, 40, 56), pixel, groups)


def test_images_are_read_for_the_network(picture, tmp_path):
    colors = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1) / 255
    assert torch.equal(read_image(picture, 3), colors)
    gray = read_image(picture, 1)
    torch.testing.assert_close(gray[0], torch.einsum("chw,c->hw", colors, torch.tensor([0.2989, 0.587, 0.114])))
    assert read_image(picture, 3, 20).shape == (3, 20, 20)
    assert last_layers(tiny())["res5"].kernel_size == 7
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "gone.png", 3)
    with pytest.raises(InputError, match="size = 0"):
        read_image(picture, 3, 0)
    with pytest.raises(InputError, match="images of 2 channels"):
        read_image(picture, 2)


# The pictures


def written(path):
    """An image that is not of one color."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    return pixels


def test_the_shipped_network_is_drawn(picture, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for arguments, name in (
        (["priors", "--out", "deep/other.png"], "deep/other.png"),
        (
            ["composability", "--image", str(picture), "--size", "28", "--pixel", "0,27", "--group", "1"],
            "composability.png",
        ),
    ):
        result = CliRunner().invoke(main, ["figure", *arguments])
        assert result.exit_code == 0, result.output
        assert name in result.stdout
        written(tmp_path / name)


def test_a_picture_names_stages_and_groups(tmp_path):
    pytest.importorskip("matplotlib")
    from robust_lr.paper.figures import draw_compositions, draw_priors

    model = tiny()
    texts = [text.get_text() for axes in draw_priors(learnt_priors(model), "mine").axes for text in axes.texts]
    assert [text.split("\n")[0] for text in texts] == ["res2", "res3", "res4", "res5"]
    assert texts[0].endswith("all 2 groups")
    assert texts[3].endswith("12 of 13 groups")
    figure = draw_priors(learnt_priors(model), "mine")
    titles = [axes.get_title() for axes in figure.axes]
    assert "group 12" not in titles  # of 13 groups 12 are shown
    assert titles.count("group 0") == 4
    assert "mine" in figure.get_suptitle()
    image = torch.rand(3, 40, 56)
    figure = draw_compositions(image, (4, 9), compute_compositions(model, image, (4, 9)), "mine")
    assert sum(axes.get_title().startswith("weights of the 7 x 7") for axes in figure.axes) == 4
    assert "row 4, column 9" in figure.get_suptitle()


def test_a_missing_matplotlib_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = CliRunner().invoke(main, ["figure", "priors"])
    assert result.exit_code == 2
    assert "pip install matplotlib" in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_named(picture, tmp_path):
    spec = {"name": "resnet18", "num_classes": 3, "width": 1 / 16}
    save_weights(tmp_path / "r.safetensors", build_model(**spec), spec, {})
    assert load_model(tmp_path / "r.safetensors")
    for arguments, words in (
        (["priors", "--checkpoint", str(tmp_path / "r.safetensors")], "no local relation layers"),
        (["priors", "--checkpoint", "gone"], "gone"),
        (["composability", "--image", "gone.png"], "gone.png"),
        (["composability", "--image", str(picture), "--size", "28", "--pixel", "middle"], "write ROW,COLUMN"),
        (["composability", "--image", str(picture), "--size", "28", "--pixel", "40,0"], "outside the image"),
        (["composability", "--image", str(picture)], "40 x 56 pixels, the network was trained on 28 x 28"),
        (["priors", "--out", "priors.foo"], "the suffix decides the format: use one of .png, .pdf, .svg"),
        (["priors", "--out", str(picture / "in-a-file.png")], "is a file, not a folder"),
    ):
        result = CliRunner().invoke(main, ["figure", *arguments])
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
