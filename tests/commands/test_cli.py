import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import robust_lr as rlr
from robust_lr.cli import COMMANDS, main
from robust_lr.config.training import shipped
from robust_lr.data.dataset import content_hash
from robust_lr.data.registry import DATASETS
from robust_lr.models.checkpoint import WEIGHTS, load_model, save_weights, weights_hash
from robust_lr.protocols.presets import PROTOCOLS
from robust_lr.training.run_folder import read_metrics

SPEC = {"name": "resnet18", "num_classes": 3, "in_channels": 1, "width": 1 / 16, "stem": "small"}


def save(path, n=24, classes=3, size=12, seed=0, **arrays):
    images = np.random.default_rng(seed).integers(0, 256, (n, size, size), np.uint8)
    np.savez(path, **{"images": images, "labels": np.arange(n) % classes} | arrays)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Data sets and checkpoints, good and bad."""
    folder = tmp_path_factory.mktemp("room")
    save(folder / "small.npz")
    save(folder / "one-class.npz", classes=1)
    save(folder / "four-classes.npz", classes=4)
    save(folder / "color.npz", images=np.zeros((24, 12, 12, 3), np.uint8))
    save(folder / "bad-labels.npz", num_classes=2)
    save(folder / "bad-pixels.npz", images=np.full((24, 12, 12), 255.0, np.float32))
    torch.manual_seed(0)
    model = rlr.build_model(**SPEC)
    save_weights(folder / "other.safetensors", model, {**SPEC, "name": "resnet26"}, {})
    save_weights(folder / "classes.safetensors", model, {**SPEC, "num_classes": 10}, {})
    content = (folder / "other.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[:-100])
    torch.save(model.state_dict(), folder / "pickle.pt")
    return folder


def training(room, *overrides):
    """Arguments of a training that takes a second."""
    values = ["model.name=resnet18", "model.width=0.0625", "model.stem=small", f"data.name=npz:{room / 'small.npz'}"]
    values += ["attack.steps=2", "train.epochs=2", "train.batch_size=8", "train.lr=0.1", "train.threads=1"]
    values += ["train.device=cpu"]
    own = {value.partition("=")[0]: value for value in (*values, *overrides)}
    return ["adv-train", *(word for value in own.values() for word in ("--set", value))]


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def run(room, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = succeed(*training(room), "--out", folder)
    return folder, result


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refuse(words, *arguments):
    """Exit code 2, one line on stderr that says what is wrong, and nothing written."""
    before = sorted(os.walk("."))
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("robust-lr: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert sorted(os.walk(".")) == before


# Help and names


def test_help_names_every_command():
    for option in ("-h", "--help"):
        text = succeed(option).output
        for command in COMMANDS:
            assert command in text


@pytest.mark.parametrize("command", ["adv-train", "attack", "table9", "list"])
def test_help_of_a_command_explains_its_options(command):
    text = succeed(command, "--help").output
    for option in main.get_command(None, command).params:
        assert option.opts[0] in text or option.name.upper() in text
        assert getattr(option, "help", None) or option.name in ("config", "device", "json_file", "kind")


def test_version():
    assert succeed("--version").output == f"robust-lr, version {rlr.__version__}\n"


def test_list_names_everything_there_is():
    text = succeed("list").output
    for name in (*rlr.MODELS, *DATASETS, *PROTOCOLS, *shipped()):
        assert name in text
    assert "eps 16/255, step 1/255, 16 steps" in text


def test_unknown_options_are_wrong_usage():
    assert invoke("attack", "--target").exit_code == 2
    assert invoke("atack").exit_code == 2


# Training


def test_training_writes_a_run_and_suggests_an_attack(run):
    folder, result = run
    assert len(read_metrics(folder)) == 6
    assert load_model(folder)
    assert "epoch 2 of 2: loss" in result.stderr
    assert f"robust-lr attack --targeted --checkpoint {folder}\n" in result.stdout


def test_the_folder_has_the_config_s_name_by_default(room, here):
    (here / "mine.toml").write_text(
        f"[data]\nname = 'npz:{room / 'small.npz'}'\nlimit = 8\n[attack]\nprotocol = 'none'\n"
    )
    arguments = training(room, "attack.protocol=none", "data.limit=8", "train.epochs=1")
    succeed(arguments[0], "mine.toml", *arguments[1:])
    assert (here / "runs" / "mine" / WEIGHTS).is_file()


def test_names_in_brackets_are_printed_as_they_are(run, room, here):
    (here / "[bold]").mkdir()
    (here / "[bold]" / "small.npz").write_bytes((room / "small.npz").read_bytes())
    out = here / "[bold]" / "out"
    text = succeed(*training(room, "data.name=npz:[bold]/small.npz", "train.epochs=1"), "--out", out).stdout
    assert f"epochs: {out}\n" in text
    text = succeed("attack", "--targeted", "--checkpoint", out, "--set", "steps=1").stdout
    assert "out on npz:[bold]/small.npz" in text


def test_a_finished_run_is_left_alone_and_a_used_folder_refused(run, room, here):
    folder, _ = run
    before = weights_hash(load_model(folder))
    assert f"{folder} is already finished" in succeed(*training(room), "--out", folder, "--resume").stdout
    assert weights_hash(load_model(folder)) == before
    refuse(["already holds a run", "--resume"], *training(room), "--out", folder)
    refuse(["train.lr = 0.1", "now it is 0.2"], *training(room, "train.lr=0.2"), "--out", folder, "--resume")


def test_a_loss_that_is_not_finite_is_a_failure_not_wrong_input(room, here):
    result = invoke(*training(room, "train.lr=1e30", "train.warmup_epochs=0"))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("robust-lr: the loss became ")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.name=lrnet27", ["'lrnet27'", "'lrnet26'", "resnet101"]),
        ("model.width=wide", ["'wide'", "a number"]),
        ("model.stem=huge", ["'huge'", "imagenet, stride2, small"]),
        ("model.border=zero", ["'border'", "resnet18"]),
        ("data.name=fashion-mnist-mimi", ["'fashion-mnist-mimi'", "did you mean 'fashion-mnist-mini'", "cifar10"]),
        ("data.name=npz:gone.npz", ["gone.npz", "check the path"]),
        ("data.name=folder:gone", ["gone", "check the path"]),
        ("data.name=imagenet", ["imagenet", "sub-folder"]),
        ("data.limit=25", ["limit = 25", "24 images"]),
        ("data.augment=imagenet", ["needs image files"]),
        ("attack.protocol=lrnet-trian", ["'lrnet-trian'", "did you mean 'lrnet-train'"]),
        ("attack.eps=16", ["eps = 16", "[0, 1]", "16/255"]),
        ("attack.eps=-0.1", ["eps = -0.1", "[0, 1]"]),
        ("attack.epsilon=0.1", ["'epsilon'", "did you mean 'eps'"]),
        ("train.epoch=1", ["'epoch'", "did you mean 'epochs'"]),
        ("trian.epochs=1", ["'trian'", "did you mean 'train'"]),
        ("train.epochs=many", ["train.epochs = 'many'", "a whole number"]),
        ("train.lr=nan", ["lr = nan"]),
        ("train.batch_size=25", ["train.batch_size = 25", "24 training images"]),
        ("train.device=tpu", ["'tpu'", "'cpu'"]),
        ("train.epochs", ["train.epochs", "section.key=value"]),
    ],
)
def test_bad_values_of_a_training_are_named_and_nothing_is_written(room, here, override, words):
    refuse(words, *training(room, override))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("one-class.npz", ["num_classes = 1", "at least 2"]),
        ("bad-labels.npz", ["label 2", "0..1"]),
        ("bad-pixels.npz", ["255", "[0, 1]"]),
    ],
)
def test_bad_data_are_named_before_training(room, here, file, words):
    refuse(words, *training(room, f"data.name=npz:{room / file}"))


def test_impossible_paths_are_named(room, here):
    (here / "file").write_text("mine")
    refuse(["'gone.toml'", "imagenet/lrnet26_adv"], "adv-train", "gone.toml")
    refuse(["file is a file", "choose another folder"], *training(room), "--out", "file")
    refuse(["not valid TOML"], "adv-train", "file")
    assert (here / "file").read_text() == "mine"


def test_bad_input_in_a_real_process_is_one_line(here):
    command = [sys.executable, "-m", "robust_lr", "adv-train", "--set", "attack.eps=16"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr
        == "robust-lr: eps = 16 is outside [0, 1]: pixels are in [0, 1]; for 16 of 255 levels write 16/255\n"
    )
    assert list(here.iterdir()) == []


# Attacking


@pytest.fixture
def attack(run, tmp_path):
    """Attack the run with three steps; every test has an output folder of its own."""

    def call(*arguments, out=tmp_path / "out"):
        common = ["attack", "--checkpoint", run[0], "--threads", 1, "--device", "cpu", "--set", "steps=3"]
        return invoke(*common, "--out", out, *arguments)

    return call


@pytest.mark.parametrize("mode", ["targeted", "untargeted"])
def test_attack_writes_a_result_with_everything_it_depends_on(run, room, here, mode):
    folder, _ = run
    result = succeed("attack", f"--{mode}", "--checkpoint", folder)
    file = folder / "attacks" / f"lrnet-{mode}" / "result.json"
    record = json.loads(file.read_text())
    assert record["protocol"] == PROTOCOLS[f"lrnet-{mode}"].values()
    assert (record["n"], record["seed"], record["data"]) == (24, 0, f"npz:{room / 'small.npz'}")
    assert record["weights_sha256"] == weights_hash(load_model(folder))
    assert record["images_sha256"] == content_hash(rlr.data.load(f"npz:{room / 'small.npz'}", "test"))
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"].startswith(("cpu: ", "cuda: "))
    assert record["seconds"] > 0
    for share in ("clean_accuracy", "robust_accuracy", "attack_success"):
        low, high = record["intervals"][share]
        assert 0 <= low <= record[share] <= high <= 1
        assert share.replace("_", " ").split()[0] in result.stdout
    assert 0 < record["max_distance"] <= 16 / 255 + 1e-6
    assert f"{100 * record['robust_accuracy']:.1f}" in result.stdout
    assert "eps 16/255, step 1/255, 16 steps, uniform start" in " ".join(result.stdout.split())
    assert str(file) in result.stdout


def test_a_weights_file_is_attacked_like_its_folder(run, here, attack):
    attack("--targeted", out="folder")
    result = attack("--targeted", "--checkpoint", run[0] / WEIGHTS, out="file")
    assert result.exit_code == 0
    one, other = (json.loads((here / out / "result.json").read_text()) for out in ("folder", "file"))
    different = {key for key in one if one[key] != other[key]}
    assert different <= {"model", "seconds", "date"}


def test_values_of_a_protocol_can_be_changed(tmp_path, attack):
    result = attack("--protocol", "madry-cifar10", "--set", "eps=4/255", "--limit", 6, "--seed", 7)
    assert result.exit_code == 0
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["protocol"]["eps"] == 4 / 255
    assert record["protocol"]["steps"] == 3
    assert record["protocol"]["targeted"] is False
    assert record["protocol"]["name"] == "madry-cifar10,eps=4_255,steps=3"
    assert (record["n"], record["seed"]) == (6, 7)


def test_the_same_command_resumes_and_fresh_starts_over(tmp_path, attack, monkeypatch):
    room = importlib.import_module("robust_lr.evaluation.harness")  # the package's own name is the function
    ledger_rows, calls = room.ledger_rows, []

    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ledger_rows(*arguments, **options)

    monkeypatch.setattr(room, "ledger_rows", counted)
    stopped = attack("--untargeted", "--batch-size", 10, "--compute-batch", 10)
    assert stopped.exit_code == 130
    assert stopped.stderr.splitlines()[-1].startswith("robust-lr: stopped by SIGINT")
    file = tmp_path / "out" / "result.json"
    assert not file.exists()

    assert attack("--untargeted", "--batch-size", 10, "--compute-batch", 10).exit_code == 0
    assert len(calls) == 4  # one batch before, one that was stopped, two more
    resumed = json.loads(file.read_text())
    assert attack("--untargeted", "--batch-size", 10, "--compute-batch", 10).exit_code == 0
    assert len(calls) == 4
    reread = json.loads(file.read_text())
    assert (resumed["read_from_ledger"], reread["read_from_ledger"]) == (10, 24)
    assert reread == resumed | {"read_from_ledger": 24}

    assert attack("--untargeted", "--batch-size", 10, "--compute-batch", 10, "--fresh").exit_code == 0
    assert len(calls) == 7
    again = json.loads(file.read_text())
    assert {key for key in again if again[key] != resumed[key]} - {"date"} == {"seconds", "read_from_ledger"}


def test_another_attack_in_the_same_folder_is_refused_with_the_difference(tmp_path, attack):
    attack("--untargeted")
    before = (tmp_path / "out" / "result.json").read_text()
    for option, words in (("--seed", "seed was 0 and is 5"), ("--limit", "images was 24 and is 5")):
        result = attack("--untargeted", option, 5)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert words in result.stderr
        assert (tmp_path / "out" / "result.json").read_text() == before
        assert attack("--untargeted", option, 5, "--fresh").exit_code == 0
        attack("--untargeted", "--fresh")
        before = (tmp_path / "out" / "result.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--targeted", "--untargeted", "--protocol NAME"]),
        (["--protocol", "lrnet-targetd"], ["'lrnet-targetd'", "did you mean 'lrnet-targeted'", "madry-cifar10"]),
        (["--targeted", "--untargeted"], ["--targeted", "--untargeted"]),
        (["--targeted", "--protocol", "madry-cifar10"], ["--targeted", "--protocol"]),
        (["--targeted", "--set", "eps=16"], ["eps = 16", "[0, 1]", "16/255"]),
        (["--targeted", "--set", "eps=-1/255"], ["eps = -0.0039", "[0, 1]"]),
        (["--targeted", "--set", "epsilon=0.1"], ["'epsilon'", "'eps'"]),
        (["--targeted", "--set", "steps=1.5"], ["steps = 1.5", "a whole number"]),
        (["--targeted", "--set", "eps"], ["'eps'", "key=value"]),
        (["--targeted", "--data", "fashion"], ["'fashion'", "fashion-mnist"]),
        (["--targeted", "--data", "npz:gone.npz"], ["gone.npz", "check the path"]),
        (["--targeted", "--data", "npz:one-class.npz"], ["num_classes = 1", "at least 2"]),
        (["--targeted", "--data", "npz:four-classes.npz"], ["3 classes", "labels up to 3"]),
        (["--targeted", "--data", "npz:color.npz"], ["(24, 3, 12, 12)", "[N, 1, H, W]"]),
        (["--targeted", "--data", "npz:bad-labels.npz"], ["label 2", "0..1"]),
        (["--targeted", "--data", "npz:bad-pixels.npz"], ["255", "[0, 1]"]),
        (["--targeted", "--limit", 25], ["limit = 25", "24 images"]),
        (["--targeted", "--limit", -1], ["limit = -1"]),
        (["--targeted", "--batch-size", 0], ["batch_size = 0", "at least 1"]),
        (["--targeted", "--workers", -1], ["workers = -1", "at least 0"]),
        (["--targeted", "--threads", -1], ["threads = -1", "at least 0"]),
        (["--targeted", "--device", "tpu"], ["'tpu'", "'cpu'"]),
        (["--targeted", "--checkpoint", "gone"], ["'gone'", "does not exist"]),
        (["--targeted", "--checkpoint", "."], ["weights.safetensors", "run folder"]),
        (["--targeted", "--checkpoint", "cut.safetensors"], ["cut.safetensors", "truncated"]),
        (["--targeted", "--checkpoint", "pickle.pt"], ["pickle.pt", "pickled", "safetensors"]),
        (["--targeted", "--checkpoint", "other.safetensors"], ["other.safetensors", "does not fit"]),
        (["--targeted", "--checkpoint", "classes.safetensors"], ["(3, 32)", "(10, 32)"]),
    ],
)
def test_bad_input_of_an_attack_is_named_and_nothing_is_written(run, room, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(room)
    checkpoint = [] if "--checkpoint" in arguments else ["--checkpoint", run[0]]
    refuse(words, "attack", *checkpoint, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_named(attack, here):
    (here / "file").write_text("mine")
    result = attack("--targeted", out=here / "file")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "file" in result.stderr
    assert (here / "file").read_text() == "mine"


def test_bad_input_keeps_an_earlier_evaluation(attack, tmp_path):
    attack("--targeted")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    for wrong in (["--batch-size", 0], ["--workers", -1], ["--limit", 99]):
        assert attack("--targeted", "--fresh", *wrong).exit_code == 2
        assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_the_shipped_network_is_attacked_when_none_is_given(here):
    result = succeed("attack", "--targeted", "--limit", 64, "--threads", 1)
    (file,) = here.rglob("result.json")
    record = json.loads(file.read_text())
    assert (record["n"], record["data"]) == (64, "fashion-mnist-mini")
    assert record["protocol"] == PROTOCOLS["lrnet-targeted"].values()
    assert record["clean_accuracy"] > 0.55
    assert record["robust_accuracy"] > 0.45
    assert record["weights_sha256"] == weights_hash(load_model())
    assert "on fashion-mnist-mini" in result.stdout
