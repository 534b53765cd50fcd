import json
import os
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_finished_like, noise, small_run, until

import robust_lr as rlr
from robust_lr import config as config_room
from robust_lr.config.training import to_toml
from robust_lr.data.dataset import spread
from robust_lr.models.checkpoint import WEIGHTS, checkpoint_record, load_model, read_tensors, weights_hash
from robust_lr.training import run as runs
from robust_lr.training.run import train_run
from robust_lr.training.run_folder import CONFIG, METRICS, PROVENANCE, read_metrics
from robust_lr.training.signals import Interrupted, collect_stop_signals
from robust_lr.training.train_state import STATES, list_states
from robust_lr.utils.errors import InputError, RunError

STEPS = 18  # 3 epochs of 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return noise(tmp_path_factory.mktemp("data") / "small.npz", 12, 3, train=48, test=20)


@pytest.fixture(scope="module")
def config(data):
    return config_room.load(None, small_run(data))


def with_values(config, **sections):
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in sections.items()})


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    steps = list(train_run(config, folder))
    return folder, steps


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_folder_holds_all_that_is_needed(straight, config, data):
    folder, steps = straight
    assert sorted(os.listdir(folder)) == sorted([CONFIG, METRICS, PROVENANCE, STATES, WEIGHTS])
    assert config_room.from_dict(tomllib.loads((folder / CONFIG).read_text())) == config
    model = load_model(folder)
    provenance = json.loads((folder / PROVENANCE).read_text())
    assert provenance["weights_sha256"] == weights_hash(model)
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["device"].startswith("cpu: ")
    assert (provenance["step"], provenance["steps"], provenance["finished"]) == (STEPS, STEPS, True)
    assert provenance["model"] == {**config.model, "num_classes": 3, "in_channels": 1}
    for split, key in (("train", "data_sha256"), ("test", "test_data_sha256")):
        assert provenance[key] == rlr.data.content_hash(rlr.data.load(f"npz:{data}", split))
    assert checkpoint_record(folder) == {"data": f"npz:{data}", "attack": config.attack.name, "seed": 5, "epoch": 3.0}
    assert len(steps) == STEPS


def test_metrics_have_a_line_per_step_and_the_test_accuracy_per_epoch(straight, data):
    folder, steps = straight
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "test_accuracy" in line] == [6, 12, 18]
    assert [line["loss"] for line in lines] == [step.loss for step in steps]
    test = rlr.data.load(f"npz:{data}", "test")
    x, y, _ = test.batch(torch.arange(20))
    with torch.no_grad():
        right = load_model(folder)(x).argmax(1) == y
    assert lines[-1]["test_accuracy"] == pytest.approx(right.float().mean().item())


def test_another_seed_gives_another_loss(straight, config, tmp_path):
    first = next(train_run(replace(config, seed=6), tmp_path / "other"))
    assert first.loss != straight[1][0].loss


@pytest.mark.parametrize(("number", "stop"), [(signal.SIGINT, 1), (signal.SIGTERM, 6), (signal.SIGHUP, 17)])
def test_a_signal_saves_the_state_and_resuming_is_exact_to_the_bit(straight, config, tmp_path, number, stop):
    def until_told_to_stop():
        for step in train_run(config, tmp_path / "run"):
            if step.step == stop:
                os.kill(os.getpid(), number)

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step {stop} of 18.*`resume`") as caught:
        until_told_to_stop()
    assert caught.value.signal == number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert load_model(tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == stop
    rest = list(train_run(config, tmp_path / "run", resume=True))
    assert [step.step for step in rest] == list(range(stop + 1, STEPS + 1))
    assert_finished_like(tmp_path / "run", straight[0])


def test_resuming_an_lrnet_is_exact_to_the_bit(config, tmp_path):
    config = replace(config, model={**config.model, "name": "lrnet26"}, train=replace(config.train, epochs=1))
    list(train_run(config, tmp_path / "straight"))
    run = train_run(config, tmp_path / "run")
    assert [next(run).step for _ in range(3)] == [1, 2, 3]
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        next(run)
    list(train_run(config, tmp_path / "run", resume=True))
    assert_finished_like(tmp_path / "run", tmp_path / "straight")


def test_a_signal_in_the_last_step_ends_the_run_as_usual(straight, config, tmp_path):
    for step in train_run(config, tmp_path / "run"):
        if step.step == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
    assert_finished_like(tmp_path / "run", straight[0])


def test_a_second_signal_has_its_usual_effect(config, tmp_path):
    run = train_run(config, tmp_path / "run")
    next(run)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    run.close()


def test_under_torchrun_a_second_signal_is_collected_too(monkeypatch):
    """torchrun hands on what a job system has told its processes already."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with collect_stop_signals() as received:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert received == [signal.SIGTERM, signal.SIGTERM, signal.SIGHUP]


def test_states_are_saved_within_a_long_epoch(config, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_SECONDS", 0.0)
    run = train_run(config, tmp_path / "run")
    next(run), next(run)
    assert read_tensors(list_states(tmp_path / "run")[0])[1]["step"] == "2"
    run.close()


@pytest.mark.parametrize("broken", [WEIGHTS, PROVENANCE, "step-"])
def test_a_crash_between_the_files_of_a_save_loses_nothing(straight, config, tmp_path, monkeypatch, broken):
    """Whichever file a run dies at, resuming ends with the weights of the uninterrupted run."""
    replace_file, count = os.replace, 0

    def die(source, target):
        nonlocal count
        ours = os.path.basename(target).startswith(broken)
        count += ours
        if count == 3 and ours:
            raise OSError(28, "No space left on device")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(RunError, match=r"No space left on device, at step 18; the state after step 12 is kept"):
            list(train_run(config, tmp_path / "run"))
    assert list(train_run(config, tmp_path / "run", resume=True))
    assert_finished_like(tmp_path / "run", straight[0])


def test_a_run_that_died_before_its_first_save_starts_again(straight, config, tmp_path):
    run = train_run(config, tmp_path / "run")
    next(run), next(run)
    run.close()
    assert len(read_metrics(tmp_path / "run")) == 2
    list(train_run(config, tmp_path / "run", resume=True))
    assert_finished_like(tmp_path / "run", straight[0])


def test_a_finished_run_has_nothing_left_to_do(straight, config, tmp_path):
    folder = straight[0]
    before = contents(folder)
    assert list(train_run(config, folder, resume=True)) == []
    assert contents(folder) == before


def test_a_used_folder_is_refused(straight, config, tmp_path):
    with pytest.raises(InputError, match="already holds a run: continue it with `resume`"):
        next(train_run(config, straight[0]))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        next(train_run(config, tmp_path))
    with pytest.raises(InputError, match=r"notes.txt is a file: choose another folder"):
        next(train_run(config, tmp_path / "notes.txt"))
    with pytest.raises(InputError, match=r"notes.txt/run cannot be written: Not a directory; choose another folder"):
        next(train_run(config, tmp_path / "notes.txt" / "run"))
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_another_config_is_refused_with_the_difference(straight, config):
    folder = straight[0]
    before = contents(folder)
    for other, words in [
        (with_values(config, train={"lr": 0.1}), "train.lr = 0.05, now it is 0.1"),
        (replace(config, model={**config.model, "width": 0.125}), "model.width = 0.0625, now it is 0.125"),
        (replace(config, model={"name": "resnet26"}), "model.name = 'resnet18', now it is 'resnet26'"),
        (replace(config, seed=6), "seed = 5, now it is 6"),
        (replace(config, attack=rlr.protocols.get("none")), "attack.eps = .*, now it is 0.0"),
        (with_values(config, data={"limit": 40}), "data.limit = 0, now it is 40"),
    ]:
        with pytest.raises(InputError, match=words):
            next(train_run(other, folder, resume=True))
    assert contents(folder) == before


def test_threads_workers_and_the_data_folder_may_change(straight, config):
    other = with_values(config, data={"workers": 1, "root": "/"}, train={"threads": 2})
    assert list(train_run(other, straight[0], resume=True)) == []


def test_a_run_continues_with_other_micro_batches(straight, config, tmp_path):
    until(config, tmp_path / "run", 6)
    fewer = with_values(config, compute={"micro_batch": 4})
    rest = list(train_run(fewer, tmp_path / "run", resume=True))
    assert [step.step for step in rest] == list(range(7, STEPS + 1))
    assert rest[0].loss != straight[1][6].loss  # batch norm sees 4 images at a time


def test_other_images_under_the_same_name_are_refused(config, data, tmp_path):
    with np.load(data) as npz:
        arrays = dict(npz)
    moved = with_values(config, data={"name": "npz:mine.npz", "root": str(tmp_path)})
    np.savez(tmp_path / "mine.npz", **arrays)
    until(moved, tmp_path / "run", 6)
    arrays["train_images"][3, 4, 5] ^= 1
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(InputError, match="holds a run on other training images"):
        next(train_run(moved, tmp_path / "run", resume=True))


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(config, tmp_path):
    list(train_run(with_values(config, train={"epochs": 1}), tmp_path / "run"))
    wild = with_values(config, train={"epochs": 2, "lr": 1e30, "warmup_epochs": 0})
    # the next epochs of the same run, at a rate that breaks it
    (tmp_path / "run" / CONFIG).write_text(to_toml(wild))
    files = tmp_path / "run" / WEIGHTS, list_states(tmp_path / "run")[0]
    before = [file.read_bytes() for file in files]
    with pytest.raises(RunError, match=r"the loss became (nan|inf) at step \d+ of 12: try a learning rate below"):
        list(train_run(wild, tmp_path / "run", resume=True))
    assert [file.read_bytes() for file in files] == before
    assert load_model(tmp_path / "run")


def test_weights_that_are_not_finite_are_never_saved(config, tmp_path):
    """A finite loss can still lead to such weights in the very step that ends the run."""
    huge = {"lr": 1e30, "weight_decay": 1e30, "warmup_epochs": 0, "epochs": 1, "batch_size": 48}
    with pytest.raises(RunError, match="is not finite at step 1 of 1"):
        list(train_run(with_values(config, train=huge), tmp_path / "run"))
    assert not (tmp_path / "run" / WEIGHTS).exists()
    assert list_states(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"batch_size": 49}}, "train.batch_size = 49: there are only 48 training images"),
        ({"data": {"limit": 49}}, "limit = 49: .* has 48 images"),
        ({"data": {"name": "cifar11"}}, "unknown data set 'cifar11'"),
        ({"data": {"augment": "imagenet"}}, "needs image files, but .* is held in memory"),
        ({"train": {"device": "gpu"}}, "device 'gpu' is not available"),
        ({"train": {"device": "meta"}}, "device 'meta' is not available"),
    ],
)
def test_bad_input_leaves_no_folder(config, tmp_path, sections, words):
    with pytest.raises(InputError, match=words):
        next(train_run(with_values(config, **sections), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_bad_model_or_a_single_class_leaves_no_folder(config, tmp_path):
    np.savez(tmp_path / "one.npz", images=np.zeros((8, 4, 4), np.uint8), labels=np.zeros(8, np.int64))
    one = with_values(config, data={"name": f"npz:{tmp_path / 'one.npz'}"})
    bad = replace(config, model={"name": "lrnet26", "composability": "sum"})
    for wrong, words in ((one, "num_classes = 1, at least 2 needed"), (bad, "unknown composability 'sum'")):
        with pytest.raises(InputError, match=words):
            next(train_run(wrong, tmp_path / "run"))
        assert not (tmp_path / "run").exists()


def test_spread_takes_images_evenly():
    data = rlr.data.from_arrays(np.zeros((10, 2, 2), np.uint8), np.arange(10))
    assert spread(data, 4).labels.tolist() == [0, 2, 5, 7]
    assert spread(data, 10).labels.tolist() == list(range(10))
    for n in (0, -1, 11):
        with pytest.raises(InputError, match=f"limit = {n}: arrays has 10 images"):
            spread(data, n)


def test_training_does_not_touch_the_global_generator(config, tmp_path):
    state = torch.get_rng_state()
    next(train_run(config, tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), state)


#: the command line in a process that signals itself at the start of its ninth step
COMMAND = """
import os
from robust_lr import cli
from robust_lr.training import loop
rate = loop.learning_rate
def learning_rate(config, step, per_epoch):
    if step == 8:
        os.kill(os.getpid(), {number})
    return rate(config, step, per_epoch)
loop.learning_rate = learning_rate
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code", "done"), [(signal.SIGINT, 130, 9), (signal.SIGTERM, 143, 9), (signal.SIGKILL, -9, 6)]
)
def test_the_command_can_be_stopped_and_resumed(straight, config, data, tmp_path, number, code, done):
    folder = tmp_path / "run"
    (tmp_path / "empty.toml").touch()
    command = [sys.executable, "-c", COMMAND.format(number=int(number)), "adv-train", str(tmp_path / "empty.toml")]
    command += ["--out", str(folder), *(word for value in small_run(data) for word in ("--set", value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stopped = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert stopped.returncode == code, stopped.stderr
    if code > 0:
        last = stopped.stderr.splitlines()[-1]
        assert last.startswith(f"robust-lr: stopped by {number.name} after step 9 of 18; the state is saved")
        assert "Traceback" not in stopped.stderr
    assert load_model(folder)
    assert read_tensors(list_states(folder)[0])[1]["step"] == str(done)
    rest = list(train_run(config, folder, resume=True))
    assert [step.step for step in rest] == list(range(done + 1, STEPS + 1))
    assert_finished_like(folder, straight[0])
