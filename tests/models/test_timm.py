import importlib
import subprocess
import sys

import pytest
import torch

from robust_lr import MODELS
from robust_lr.models.build import build_model
from robust_lr.utils.errors import InputError

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module", autouse=True)
def registered():
    importlib.import_module("robust_lr.timm")


def test_networks_are_found_by_name_and_by_their_tag():
    ours = [name for name in MODELS if not name.startswith(("resnet18", "resnet26", "resnet50", "resnet101"))]
    for name in ours:
        assert timm.is_model(name)
    assert set(timm.list_models("lrnet*")) == {name for name in MODELS if name.startswith("lrnet")}
    for name in ("lrnet26", "lrnet26.robust_lr"):
        model = timm.create_model(name, num_classes=7, in_chans=1, width=1 / 16, kernel_size=3)
        twin = build_model("lrnet26", num_classes=7, in_channels=1, width=1 / 16, kernel_size=3)
        twin.load_state_dict(model.state_dict())
        x = torch.rand(2, 1, 32, 32)
        assert torch.equal(model.eval()(x), twin.eval()(x))
        assert model.num_classes == 7


def test_timm_s_own_networks_stay_timm_s():
    assert type(timm.create_model("resnet50")).__module__.startswith("timm")


def test_timm_s_pipeline_leaves_pixels_alone():
    config = timm.data.resolve_model_data_config(timm.create_model("lrnet26", width=1 / 16))
    assert config["mean"] == (0.0, 0.0, 0.0)
    assert config["std"] == (1.0, 1.0, 1.0)
    assert config["input_size"] == (3, 224, 224)
    gray = timm.create_model("lrnet26", width=1 / 16, in_chans=1)
    assert timm.data.resolve_model_data_config(gray)["input_size"] == (1, 224, 224)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lrnet26", {"pretrained": True}, "no pretrained weights of lrnet26"),
        ("lrnet26", {"drop_rate": 0.1}, "drop_rate = 0.1: lrnet26 has no dropout"),
        ("lrnet26", {"kernelsize": 3}, "unknown option of lrnet26 'kernelsize'"),
    ],
)
def test_what_there_is_not_is_named(name, options, words):
    with pytest.raises(InputError, match=words):
        timm.create_model(name, **options)


def test_the_package_alone_does_not_import_timm():
    code = "import sys, robust_lr; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
