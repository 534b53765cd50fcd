import json
import os
import pickle

import pytest
import safetensors.torch
import torch

import robust_lr as rlr
from robust_lr.models import checkpoint
from robust_lr.models.checkpoint import load_model, save_weights, weights_hash, write_tensors
from robust_lr.utils.errors import InputError

SPEC = {"name": "lrnet26", "num_classes": 3, "in_channels": 1, "width": 1 / 16, "stem": "small", "kernel_size": 3}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = rlr.build_model(**SPEC)
    model.bn1.running_mean.normal_()
    return model


@pytest.fixture
def weights(tmp_path, model):
    save_weights(tmp_path / "weights.safetensors", model, SPEC, {"data": "mine", "epoch": 0.5})
    return tmp_path / "weights.safetensors"


def refuse(path, words):
    with pytest.raises(InputError, match=words) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_weights_come_back_in_eval_mode_from_the_file_or_its_folder(weights, model):
    for path in (weights, weights.parent, str(weights)):
        loaded = load_model(path)
        assert not loaded.training
        assert loaded.layer1[0].conv2.prior.kernel_size == 3
        assert weights_hash(loaded) == weights_hash(model)
        x = torch.rand(2, 1, 8, 8)
        assert torch.equal(loaded(x), model.eval()(x))
    assert checkpoint.checkpoint_record(weights) == {"data": "mine", "epoch": 0.5}


def test_tensors_in_another_memory_format_are_saved_as_they_look(tmp_path):
    spec = {"name": "resnet18", "num_classes": 3, "width": 1 / 16}
    model = rlr.build_model(**spec)
    before = weights_hash(model)
    model = model.to(memory_format=torch.channels_last)
    assert not model.conv1.weight.is_contiguous()
    save_weights(tmp_path / "w", model, spec, {})
    assert weights_hash(load_model(tmp_path / "w")) == weights_hash(model) == before


def test_hash_covers_every_bit_and_every_name(model):
    before = weights_hash(model)
    with torch.no_grad():
        model.fc.bias[1] = torch.nextafter(model.fc.bias[1], torch.tensor(1.0))
    assert weights_hash(model) != before
    plain, named = torch.nn.Sequential(torch.nn.Linear(1, 1)), torch.nn.ModuleDict({"x": torch.nn.Linear(1, 1)})
    named["x"].load_state_dict(plain[0].state_dict())
    assert weights_hash(plain) != weights_hash(named)


def test_a_missing_path_is_named(tmp_path):
    refuse(tmp_path / "nowhere", "does not exist")


def test_a_folder_without_weights_is_named(tmp_path):
    refuse(tmp_path, r"holds no weights.safetensors; is it a run folder\?")


def test_an_installation_without_the_shipped_weights_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "gone.safetensors")
    with pytest.raises(InputError, match=r"gone.safetensors' does not exist"):
        load_model()


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(weights, keep):
    content = weights.read_bytes()
    weights.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    refuse(weights, "not a safetensors file, or a truncated one")


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


@pytest.mark.parametrize("write", ["zip", "legacy", "pickle"])
def test_a_pickle_is_refused_and_never_run(tmp_path, model, write):
    file, sprung = tmp_path / "model.pt", tmp_path / "sprung"
    content = {"state_dict": model.state_dict(), "trap": Trap(sprung)}
    if write == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=write == "zip")
    refuse(file, "this is a pickled PyTorch file, which could run code when loaded; convert it to safetensors")
    assert not sprung.exists()


def test_the_trap_of_the_test_above_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "lrnet50"}, r"does not fit the network: layer1.2.conv1.weight is nothing in the file"),
        ({"name": "nl26"}, "unknown option of nl26 'kernel_size'"),
        ({"num_classes": 4}, r"fc.weight is \(3, 128\) in the file, \(4, 128\) in the network"),
        ({"width": 1 / 8}, "does not fit the network: conv1.weight"),
        ({"stem": "large"}, "stem = 'large': choose one of imagenet, stride2, small"),
        ({"name": "lrnet27"}, "unknown model 'lrnet27': did you mean 'lrnet26'"),
        ({"kernelsize": 3}, "unknown option of lrnet26 'kernelsize'"),
        ({"width": "wide"}, "width = 'wide': a number is needed"),
        ({"num_classes": None}, "num_classes = None: a whole number is needed"),
    ],
)
def test_weights_that_belie_their_description_are_refused(weights, model, change, words):
    save_weights(weights, model, SPEC | change, {})
    refuse(weights, words)


def test_weights_with_more_than_the_network_are_refused(weights, model):
    write_tensors(weights, {**model.state_dict(), "extra": torch.zeros(2)}, {"model": json.dumps(SPEC)})
    refuse(weights, r"extra is \(2,\) in the file, nothing in the network")


def test_weights_of_other_software_are_refused(tmp_path, model):
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors")
    refuse(tmp_path / "theirs.safetensors", "do not say which network they belong to")


@pytest.mark.parametrize("description", ["{", "", "[]", "3", '"lrnet26"', "null"])
def test_a_description_that_is_no_json_object_is_refused(weights, model, description):
    write_tensors(weights, model.state_dict(), {"model": description})
    refuse(weights, "its description 'model' is not a JSON object")
    write_tensors(weights, model.state_dict(), {"model": json.dumps(SPEC), "about": description})
    with pytest.raises(InputError, match="its description 'about' is not a JSON object"):
        checkpoint.checkpoint_record(weights)


def test_a_description_without_a_name_is_refused(weights, model):
    write_tensors(weights, model.state_dict(), {"model": "{}"})
    refuse(weights, "unknown model ''")


def test_weights_that_say_nothing_about_themselves_load(weights, model):
    write_tensors(weights, model.state_dict(), {"model": json.dumps(SPEC)})
    assert checkpoint.checkpoint_record(weights) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(weights):
    weights.chmod(0)
    refuse(weights, "cannot be read")


def test_writing_replaces_the_whole_file_or_leaves_the_old_one(weights, model, monkeypatch):
    before = weights.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            save_weights(weights, model, SPEC, {"epoch": 2})
    assert weights.read_bytes() == before
    assert os.listdir(weights.parent) == [weights.name]
    save_weights(weights, model, SPEC, {"epoch": 2})
    assert checkpoint.checkpoint_record(weights) == {"epoch": 2}
    assert os.listdir(weights.parent) == [weights.name]
