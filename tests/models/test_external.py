import sys
import textwrap
import types

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

import robust_lr as rlr
from robust_lr.models import external as sources
from robust_lr.models.checkpoint import is_pickle
from robust_lr.models.external import load_source, read_weights, source_name
from robust_lr.models.layers.basic import PRESETS, Normalize
from robust_lr.utils.errors import InputError, RunError

OWN = {"width": 1 / 16, "stem": "small"}


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def timm(monkeypatch):
    """Stand-in for the parts of timm that we use, where it is not installed."""
    fake = types.ModuleType("timm")
    fake.list_models = lambda: ["tiny", "wrong"]
    fake.asked = []

    def create_model(name, **values):
        fake.asked.append((name, values))
        return nn.Sequential(nn.Flatten(), nn.Linear(4 * values["in_chans"], values["num_classes"]))

    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


# where a network comes from


@pytest.mark.parametrize("name", ["resnet26", "lrnet26"])
def test_our_own_by_name_with_weights_of_either_kind(here, name):
    model = rlr.build_model(name, num_classes=3, in_channels=1, **OWN)
    torch.save(model.state_dict(), here / "w.pt")
    plain = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    safetensors.torch.save_file(plain, here / "w.safetensors")
    x = torch.rand(2, 1, 8, 8)
    for weights in ("w.pt", "w.safetensors"):
        loaded = load_source(name, weights=weights, num_classes=3, in_channels=1, options=OWN)
        assert not loaded.training
        assert torch.equal(loaded(x), model.eval()(x))


def test_torchvision_with_statistics_in_front(here):
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(weights=None, num_classes=4).eval()
    torch.save(model.state_dict(), here / "w.pt")
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in PRESETS["imagenet"])
    expected = {"none": model(x), "imagenet": model((x - mean) / std), ((0.5,), (0.25,)): model((x - 0.5) / 0.25)}
    for given, logits in expected.items():
        loaded = load_source("torchvision:squeezenet1_1", weights="w.pt", num_classes=4, normalization=given)
        torch.testing.assert_close(loaded(x), logits)
        assert isinstance(next(loaded.children()), Normalize) == (given != "none")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_torchvision_s_resnet50_weights_fit_our_resnet50_and_give_its_logits(here, suffix):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(num_classes=10).eval()
    for module in theirs.modules():  # as after training
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 0.8)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.25, 0.5)
    file = here / f"theirs{suffix}"
    save = torch.save if suffix == ".pt" else safetensors.torch.save_file
    save(theirs.state_dict(), file)
    ours = load_source("resnet50", weights=file, num_classes=10)
    images = rlr.data.load("fashion-mnist-mini", "test").batch(torch.arange(2))[0]
    x = nn.functional.interpolate(images, 64, mode="bilinear").expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PRESETS["imagenet"])
    with torch.no_grad():
        expected = theirs((x - mean) / std)
        assert (ours(x) - expected).norm() < 1e-5 * expected.norm()
    assert (expected[0] - expected[1]).norm() > 0.1 * expected.norm()


def test_other_networks_must_bring_every_weight(here):
    with_statistics = nn.Sequential(Normalize([0.5], [0.5]), nn.Conv2d(1, 1, 1))
    state = {key: value for key, value in with_statistics.state_dict().items() if not key.startswith("0.")}
    torch.save(state, here / "part.pt")
    with pytest.raises(InputError, match=r"missing in the file: 0\.mean, 0\.std"):
        sources.load_weights(with_statistics, here / "part.pt")


def test_options_reach_torchvision(here):
    model = torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=2)
    torch.save(model.state_dict(), here / "w.pt")
    values = {"weights": "w.pt", "num_classes": 2, "normalization": "none"}
    assert load_source("torchvision:mobilenet_v2", **values, options={"width_mult": 0.25})
    with pytest.raises(InputError, match=r"w\.pt does not fit the network; other shapes: features\.0\.0\.weight is"):
        load_source("torchvision:mobilenet_v2", **values)
    with pytest.raises(InputError, match=r"torchvision:mobilenet_v2 failed: TypeError: .*'depth'"):
        load_source("torchvision:mobilenet_v2", **values, options={"depth": 3})


def test_timm_is_asked_for_the_network_without_its_weights(here, timm):
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).state_dict(), here / "w.pt")
    options = {"num_classes": 3, "in_channels": 1, "weights": "w.pt", "normalization": "none"}
    assert load_source("timm:tiny", **options, options={"drop": 0.5})
    assert timm.asked == [("tiny", {"pretrained": False, "num_classes": 3, "in_chans": 1, "drop": 0.5})]
    with pytest.raises(InputError, match="unknown model of timm 'tony': did you mean 'tiny'"):
        load_source("timm:tony", **options)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RunError, match=r"timm does not import .*: pip install timm"):
        load_source("timm:resnet18", normalization="none")


def test_callables_of_files_and_modules(here):
    write(here / "deep/part.py", "size = 12")
    write(here / "deep/nets.py", "import torch, part\ndef make(n=2): return torch.nn.Linear(part.size, n)")
    write(here / "bag/nets.py", "import torch\nclass Net(torch.nn.Flatten): pass")
    path = list(sys.path)
    assert load_source("deep/nets.py:make").weight.shape == (2, 12)
    assert load_source(f"{here}/deep/nets.py:make", options={"n": 5}).weight.shape == (5, 12)
    assert type(load_source("bag.nets:Net")).__name__ == "Net"
    assert load_source("torch.nn:Flatten", normalization=((0.5,), (0.5,)))[1]
    assert sys.path == path


def test_a_file_is_found_by_what_it_defines_and_hides_no_module(here):
    write(here / "json.py", "from dataclasses import dataclass\nimport torch\n@dataclass\nclass A: x: int = 0")
    import json

    with pytest.raises(InputError, match=r"json\.py:A returned A: it must return a torch\.nn\.Module"):
        load_source("json.py:A")
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("resnet27", InputError, "unknown model 'resnet27': did you mean 'resnet26'.*torchvision:NAME, timm:NAME"),
        ("torchvision:resnet19", InputError, "unknown model of torchvision 'resnet19': did you mean 'resnet1"),
        ("torchvision:fcn_resnet50", InputError, "unknown model of torchvision"),
        ("gone.py:make", InputError, r"gone\.py does not exist"),
        ("gone.nets:make", InputError, "no module named 'gone'"),
        ("torch.nnn:make", InputError, r"no module named 'torch\.nnn'"),
        ("nets.py:", InputError, r"write package\.module:callable"),
        (":make", InputError, r"write package\.module:callable"),
        ("nets.py:gone", InputError, r"nets\.py has no callable 'gone'; it has make, needs, fails"),
        ("nets.py:size", InputError, "has no callable 'size'"),
        ("nets.py:net", InputError, "is a network already"),
        ("nets.py:number", InputError, r"returned int: it must return a torch\.nn\.Module"),
        ("nets.py:fails", RunError, r"nets\.py:fails failed: ZeroDivisionError: division by zero"),
        ("nets.py:needs", RunError, r"nets\.py:needs failed: TypeError: .*'x'"),
        ("broken.py:make", RunError, r"broken\.py:make failed: SyntaxError"),
        ("lacks.py:make", RunError, r"lacks\.py:make failed: ModuleNotFoundError: No module named 'gone'"),
    ],
)
def test_bad_sources_are_one_line(here, source, error, words):
    write(here / "nets.py", """
        from torch.nn import Flatten as _Flatten
        def make(): return _Flatten()
        def needs(x): return x
        def fails(): 1 / 0
        def number(): return 1
        size, net = 3, _Flatten()
    """)  # fmt: skip
    write(here / "broken.py", "def make(:")
    write(here / "lacks.py", "import gone")
    with pytest.raises(error, match=words) as raised:
        load_source(source, normalization="none" if "torchvision" in source else None)
    assert "\n" not in str(raised.value)


def test_nothing_of_the_user_s_runs_for_a_name_of_ours(here):
    write(here / "resnet18.py", "raise SystemExit")
    write(here / "torchvision.py", "raise SystemExit")
    with pytest.raises(InputError, match="resnet18 has no weights yet: give a file"):
        load_source("resnet18", options=OWN)
    with pytest.raises(InputError, match="torchvision:resnet18 has no weights yet"):
        load_source("torchvision:resnet18", normalization="none")


# what its input is


def test_networks_of_others_need_their_normalization_said():
    for source in ("torchvision:resnet18", "timm:resnet18"):
        with pytest.raises(InputError, match=r"say what input the network expects, a preset \(imagenet, cifar10, none"):
            load_source(source)


def test_our_own_take_no_normalization(here):
    for given in ("imagenet", ((0.5,), (0.5,))):
        with pytest.raises(InputError, match="resnet18 normalizes its input itself"):
            load_source("resnet18", normalization=given)
    with pytest.raises(InputError, match="unknown preset 'imagnet': did you mean 'imagenet'"):
        load_source("torchvision:resnet18", normalization="imagnet")
    with pytest.raises(InputError, match="std > 0"):
        load_source("torch.nn:Flatten", normalization=((0.5,), (0.0,)))


def test_statistics_of_three_channels_refuse_images_of_one():
    model = load_source("torch.nn:Flatten", normalization="imagenet", in_channels=1)
    with pytest.raises(InputError, match=r"the model takes \[N, 3, H, W\]"):
        model(torch.rand(2, 1, 4, 4))
    with pytest.raises(InputError, match="takes images of 3 channels, these have 1"):
        load_source("torchvision:resnet18", normalization="none", in_channels=1)


# weights


class Malicious:
    def __reduce__(self):
        return print, ("code that a pickle ran",)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_what_training_scripts_save_is_read(here, wrap, prefix):
    state = tiny().state_dict()
    torch.save(wrap({prefix + name: tensor for name, tensor in state.items()}), here / "w.pt")
    assert {name: tensor.tolist() for name, tensor in read_weights(here / "w.pt").items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }


def test_safetensors_are_no_pickles_whatever_the_length_of_their_header(here):
    firsts = set()
    for length in range(0, 256, 8):  # the header's length comes first in the file, its lowest byte before the others
        safetensors.torch.save_file({"w": torch.ones(2)}, here / "w.safetensors", {"padding": length * "x"})
        firsts.add((here / "w.safetensors").read_bytes()[0])
        assert not is_pickle(here / "w.safetensors")
        assert list(read_weights(here / "w.safetensors")) == ["w"]
    assert 0x80 in firsts  # as of a pickle


def test_a_pickle_runs_no_code(here, capsys):
    torch.save({"state_dict": tiny().state_dict(), "args": Malicious()}, here / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt holds more than tensors.*save model\.state_dict\(\)"):
        read_weights(here / "bad.pt")
    torch.save(tiny(), here / "module.pt")
    with pytest.raises(InputError, match="holds more than tensors"):
        read_weights(here / "module.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"weights 'w\.pt': no such file"),
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        (b"", "not a safetensors file, or a truncated one"),
        (b"PK\x03\x04 cut short", "is damaged"),
        (b"\x80\x02 cut short", "holds more than tensors|is damaged"),
        (b"\x10\0\0\0\0\0\0\0{}", "not a safetensors file"),
    ],
)
def test_files_that_are_no_weights_are_named(here, content, words):
    if isinstance(content, bytes):
        (here / "w.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, here / "w.pt")
    with pytest.raises(InputError, match=words) as raised:
        sources.read_weights(sources.Path("w.pt"))
    assert "w.pt" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_that_do_not_fit_are_named_by_their_first_keys(here):
    write(
        here / "nets.py",
        "import torch\ndef make(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))",
    )
    torch.save(tiny().state_dict(), here / "shape.pt")
    torch.save({f"{i}.weight": torch.zeros(1) for i in range(6)}, here / "names.pt")
    with pytest.raises(InputError, match=r"shape\.pt does not fit .*; other shapes: 1\.weight is \(2, 12\) in "):
        load_source("nets.py:make", weights=here / "shape.pt")
    words = r"missing in the file: 1\.bias; unknown to the network: 0\.weight, 2\.weight, 3\.weight and 2 more$"
    with pytest.raises(InputError, match=words):
        load_source("nets.py:make", weights=here / "names.pt")


def test_counters_of_batch_norm_may_be_missing(here):
    write(here / "nets.py", "import torch\ndef make(): return torch.nn.BatchNorm2d(3)")
    state = nn.BatchNorm2d(3).state_dict()
    del state["num_batches_tracked"]
    torch.save(state | {"weight": torch.full((3,), 2.0)}, here / "w.pt")
    assert load_source("nets.py:make", weights=here / "w.pt").weight.tolist() == [2.0] * 3


def test_names_are_good_for_folders(tmp_path):
    assert source_name("lrnet26", tmp_path / "mine.pt") == "lrnet26-mine"
    assert source_name("torchvision:resnet50", tmp_path / "a.safetensors") == "torchvision-resnet50-a"
    assert source_name("some/where/nets.py:make") == "nets-make"
    assert source_name("bag.nets:Net") == "bag.nets-Net"
