"""A run survives, or ends with one clear line: kill -9, damaged files, a full disk, a second process."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_finished_like, noise, small_run, until
from PIL import Image

from robust_lr import config as config_room
from robust_lr import data as data_room
from robust_lr.config.sections import OutputConfig, ValidationConfig
from robust_lr.models.build import build_model
from robust_lr.models.checkpoint import BEST, WEIGHTS, checkpoint_record, load_model, read_tensors
from robust_lr.training import run as runs
from robust_lr.training.run import prepare, train_run
from robust_lr.training.run_folder import METRICS, in_use, lock_folder, read_metrics
from robust_lr.training.train_state import list_states, newest_state, read_state, save_state
from robust_lr.training.validation import accuracy, validation_protocol
from robust_lr.utils.errors import InputError, RunError

fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
STEPS = 18


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return noise(tmp_path_factory.mktemp("data") / "small.npz", 12, 3, train=48, test=20)


@pytest.fixture(scope="module")
def config(data):
    return config_room.load(None, small_run(data, "train.ema=0.9"))


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    list(train_run(config, folder))
    assert any(name.startswith("average/") for name in newest_state(folder)[0])
    return folder


# kill -9


def test_a_run_killed_five_times_at_random_ends_with_the_same_bits(straight, config, tmp_path, monkeypatch):
    """From outside, in the middle of whatever it does: an attack, a step, a save."""
    monkeypatch.setattr(runs, "SAVE_SECONDS", 0.02)
    metrics, moments = tmp_path / "run" / METRICS, random.Random(0)
    for number in range(5):
        child = os.fork()
        if not child:
            try:
                list(train_run(config, tmp_path / "run", resume=True))
            finally:
                os._exit(1)
        while not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 3 * number):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 3) * json.loads(metrics.read_bytes().splitlines()[0])["seconds"])
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    saved = newest_state(tmp_path / "run")
    before = 0 if saved is None else int(saved[1]["step"])
    rest = [step.step for step in train_run(config, tmp_path / "run", resume=True)]
    assert rest == list(range(before + 1, STEPS + 1))
    assert len(rest) > 1
    assert_finished_like(tmp_path / "run", straight)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, STEPS + 1))


# Two runs in one folder


def test_two_runs_in_one_folder_are_refused(config, tmp_path):
    run = train_run(config, tmp_path / "run")
    next(run)
    assert in_use(tmp_path / "run")
    lines = (tmp_path / "run" / METRICS).read_bytes()
    for resume in (False, True):
        with pytest.raises(InputError, match=r"run: another process is training in this folder; wait for it"):
            next(train_run(config, tmp_path / "run", resume=resume))
    assert (tmp_path / "run" / METRICS).read_bytes() == lines
    run.close()
    assert not in_use(tmp_path / "run")
    assert next(train_run(config, tmp_path / "run", resume=True)).step == 1


def test_training_works_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(handle, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("robust_lr.training.run_folder.fcntl.flock", unsupported)
    with lock_folder(tmp_path / "run"):
        assert not in_use(tmp_path / "run")


# Damaged states


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_newest_state_falls_back_to_the_one_before(straight, config, tmp_path, caplog, damage):
    until(config, tmp_path / "run", 13)
    newest, before = list_states(tmp_path / "run")
    content = bytearray(newest.read_bytes())
    content[-7] ^= 1
    newest.write_bytes({"truncated": content[:-10], "one bit": content, "empty": b""}[damage])
    rest = list(train_run(config, tmp_path / "run", resume=True))
    assert [step.step for step in rest] == list(range(7, STEPS + 1))
    words = "does not match its checksum" if damage == "one bit" else "truncated one"
    assert any(
        str(newest) in line and words in line and "trying the previous state" in line for line in caplog.messages
    )
    assert f"continuing from step 6, {before}" in caplog.text
    assert_finished_like(tmp_path / "run", straight)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, STEPS + 1))


def test_a_run_without_a_readable_state_is_refused(config, tmp_path):
    until(config, tmp_path / "run", 13)
    for file in list_states(tmp_path / "run"):
        file.write_bytes(b"lost")
    with pytest.raises(InputError, match=r"no saved state can be read; start a new run in another folder"):
        next(train_run(config, tmp_path / "run", resume=True))
    assert len(list_states(tmp_path / "run")) == 2


def test_the_last_few_states_are_kept(config, tmp_path):
    list(train_run(replace(config, output=OutputConfig(keep=3)), tmp_path / "three"))
    assert [int(read_state(file)[1]["step"]) for file in list_states(tmp_path / "three")] == [18, 12, 6]
    later = replace(config, output=OutputConfig(keep=1))
    assert list(train_run(later, tmp_path / "three", resume=True)) == []  # how many are kept is free to change
    save_state(tmp_path / "one", 1, {"x": torch.zeros(2)}, {}, keep=1)
    save_state(tmp_path / "one", 2, {"x": torch.ones(2)}, {"said": "so"}, keep=1)
    tensors, said = newest_state(tmp_path / "one")
    assert (tensors["x"].tolist(), said["step"], said["said"], len(list_states(tmp_path / "one"))) == (
        [1, 1],
        "2",
        "so",
        1,
    )


# A full disk


@pytest.fixture
def tmpfs(tmp_path, straight):
    """A file system with room for the weights and two states, not three."""
    folder = tmp_path / "small"
    folder.mkdir()
    size = 2 * (straight / WEIGHTS).stat().st_size + int(2.5 * list_states(straight)[0].stat().st_size) + 20_000
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_clear_line_and_the_last_state_is_kept(straight, config, tmpfs):
    config = replace(config, output=OutputConfig(keep=9))
    with pytest.raises(
        RunError, match=r"No space left on device, at step \d+; the state after step \d+ is kept"
    ) as caught:
        list(train_run(config, tmpfs / "run"))
    assert "\n" not in str(caught.value)
    assert load_model(tmpfs / "run")
    kept = int(newest_state(tmpfs / "run")[1]["step"])
    assert f"the state after step {kept} is kept" in str(caught.value)
    subprocess.run(["mount", "-o", "remount,size=9m", tmpfs], check=True)
    assert [step.step for step in train_run(config, tmpfs / "run", resume=True)] == list(range(kept + 1, STEPS + 1))
    assert_finished_like(tmpfs / "run", straight)


def test_metrics_that_cannot_be_written_end_the_run(config, tmp_path, monkeypatch):
    until(config, tmp_path / "run", 7)
    (tmp_path / "run" / METRICS).unlink()
    (tmp_path / "run" / METRICS).symlink_to("/dev/full")
    monkeypatch.setattr("robust_lr.training.run_folder.keep_metrics", lambda file, step: None)
    monkeypatch.setattr("robust_lr.training.run.robust_accuracies", lambda folder: [])
    with pytest.raises(RunError, match=r"run: No space left on device, at step 7; the state after step 6 is kept"):
        next(train_run(config, tmp_path / "run", resume=True))


# Images that cannot be read


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    (tmp_path / "pictures" / "a" / "04.png").write_bytes(b"no image")
    (tmp_path / "pictures" / "b" / "09.png").write_bytes(b"")
    return tmp_path / "pictures"


def reading(config, folder, **values):
    data = replace(config.data, name=f"folder:{folder}", augment="none", **values)
    return replace(config, data=data, train=replace(config.train, epochs=1, milestones=()))


@fork
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_training_image_is_named_and_fatal(config, folder, tmp_path, workers):
    with pytest.raises(InputError, match=r"(a/04|b/09)\.png cannot be read as an image .*; replace or remove it"):
        list(train_run(reading(config, folder, workers=workers), tmp_path / "run"))


@fork
def test_an_unreadable_training_image_is_named_and_skipped(config, folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(runs, "accuracy", lambda *arguments, **options: 0.5)  # the test split is the same folder
    config = reading(config, folder, unreadable="skip")
    steps = list(train_run(config, tmp_path / "run"))
    assert sum(step.images for step in steps) == 22
    skipped = [line for line in caplog.messages if line.startswith("skipped: ")]
    assert len(skipped) == 2
    assert {name for line in skipped for name in ("a/04.png", "b/09.png") if name in line} == {"a/04.png", "b/09.png"}
    caplog.clear()
    workers = list(train_run(replace(config, data=replace(config.data, workers=1)), tmp_path / "workers"))
    assert [step.loss for step in workers] == [step.loss for step in steps]
    assert len([line for line in caplog.messages if line.startswith("skipped: ")]) == 2


@fork
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_skipped_in_every_accuracy(config, folder, tmp_path, caplog, workers):
    (folder / "a" / "00.png").write_bytes(b"no image")  # the first
    config = reading(config, folder, unreadable="skip", workers=workers)
    config = replace(config, validation=ValidationConfig(images=12))
    *_, last = train_run(config, tmp_path / "run")
    model, held = load_model(tmp_path / "run"), prepare(config).validation
    bad = [
        i for i, row in enumerate(held.rows.tolist()) if held.source.paths[row] in ("a/00.png", "a/04.png", "b/09.png")
    ]
    readable = held.subset([i for i in range(12) if i not in bad])
    assert bad
    assert last.validation_accuracy == accuracy(model, readable)
    assert last.robust_accuracy == accuracy(model, readable, validation_protocol(config), seed=5)
    every = data_room.load(config.data.name, "test")
    kept = [i for i in range(24) if every.source.paths[i] not in ("a/00.png", "a/04.png", "b/09.png")]
    assert last.test_accuracy == accuracy(model, every.subset(kept))
    assert any("00.png" in line for line in caplog.messages if line.startswith("skipped: "))


def test_an_unreadable_first_image_is_named_at_its_step(config, folder, tmp_path):
    for name in ("a/04.png", "b/09.png"):
        shutil.copy(folder / "b" / "01.png", folder / name)
    (folder / "a" / "00.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a/00\.png cannot be read as an image .*; replace or remove it"):
        list(train_run(reading(config, folder), tmp_path / "run"))
    assert (tmp_path / "run" / METRICS).exists()  # training had begun


def test_a_folder_without_a_readable_image_names_the_first(folder):
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a/00\.png cannot be read as an image"):
        data_room.load(f"folder:{folder}")


def test_a_micro_batch_without_a_readable_image_is_an_error(config, folder, tmp_path):
    for file in folder.rglob("*.png"):
        if file.name != "00.png":  # tells the shape
            file.write_bytes(b"no image")
    with pytest.raises(RunError, match=r"step 1 has a micro-batch without any readable image: see the warnings above"):
        list(train_run(reading(config, folder, unreadable="skip"), tmp_path / "run"))


def test_an_accuracy_leaves_out_a_batch_that_cannot_be_read(folder):
    data = data_room.load(f"folder:{folder}").subset([0, 1, 2])  # the third is a/04.png
    model = build_model("resnet18", num_classes=2, width=0.0625, stem="small")
    assert accuracy(model, data, batch_size=2, skip=True) == accuracy(model, data.subset([0, 1]))
    with pytest.raises(RunError, match="none of the 1 images can be read"):
        accuracy(model, data.subset([2]), skip=True)


# Robust overfitting


def validating(config, **values):
    return replace(
        config, validation=ValidationConfig(**{"images": 16, **values}), train=replace(config.train, epochs=4)
    )


def test_held_out_images_are_not_trained_on(config):
    ready = prepare(validating(config))
    train, held = ready.train, ready.validation
    assert (len(train), len(held)) == (32, 16)
    assert set(train.ids.tolist()) & set(held.ids.tolist()) == set()
    assert set(held.labels.tolist()) == {0, 1, 2}
    assert prepare(config).validation is None
    with pytest.raises(
        InputError, match=r"validation.images = 41: of 48 training images, at least train.batch_size = 8"
    ):
        prepare(validating(config, images=41))


def test_the_best_weights_are_those_of_the_best_validation(config, tmp_path, monkeypatch):
    config = validating(config)
    scripted = iter([0.5, 0.75, 0.25, 0.75])
    clean = accuracy
    monkeypatch.setattr(
        runs, "accuracy", lambda model, data, attack=None, **o: next(scripted) if attack else clean(model, data, **o)
    )
    weights = []
    for step in train_run(config, tmp_path / "run"):
        if step.robust_accuracy is not None:
            weights.append(read_tensors(tmp_path / "run" / WEIGHTS)[0])
    assert [line["robust_accuracy"] for line in read_metrics(tmp_path / "run") if "robust_accuracy" in line] == [
        *(0.5, 0.75, 0.25, 0.75)
    ]
    best = read_tensors(tmp_path / "run" / BEST)[0]
    same = [all(torch.equal(best[name], each[name]) for name in best) for each in weights]
    assert same == [False, True, False, False]
    assert checkpoint_record(tmp_path / "run" / BEST)["robust_accuracy"] == 0.75
    assert checkpoint_record(tmp_path / "run" / BEST)["epoch"] == 2


def test_a_validation_attacks_the_held_out_images(config, tmp_path):
    config = validating(config, every=3)
    list(train_run(config, tmp_path / "run"))
    lines = read_metrics(tmp_path / "run")
    assert [line["epoch"] for line in lines if "robust_accuracy" in line] == [3, 4]
    model, held, attack = load_model(tmp_path / "run"), prepare(config).validation, validation_protocol(config)
    assert (attack.steps, attack.targeted, attack.eps, attack.step_size) == (10, False, 16 / 255, 4 / 255)
    assert lines[-1]["robust_accuracy"] == accuracy(model, held, attack, seed=5)
    assert lines[-1]["validation_accuracy"] == accuracy(model, held)
    assert validation_protocol(validating(config, protocol="madry-cifar10")).steps == 20


def test_best_weights_and_their_history_survive_a_kill(config, tmp_path):
    config = validating(config)
    list(train_run(config, tmp_path / "straight"))
    until(config, tmp_path / "run", 7)
    list(train_run(config, tmp_path / "run", resume=True))
    for name in (BEST, WEIGHTS):
        (ours, said), (theirs, expected) = (read_tensors(tmp_path / f / name) for f in ("run", "straight"))
        assert said == expected
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_guard_stops_when_robust_accuracy_collapses(config, tmp_path, monkeypatch):
    config = validating(config, max_drop=0.2)
    scripted = iter([0.5, 0.7, 0.45, 0.4, 0.1])
    monkeypatch.setattr(runs, "accuracy", lambda model, data, attack=None, **o: next(scripted) if attack else 0.5)
    with pytest.raises(RunError, match=r"fell from 70.0 % to 45.0 % by epoch 3: catastrophic overfitting.*best.safe"):
        list(train_run(config, tmp_path / "run"))
    assert checkpoint_record(tmp_path / "run" / BEST)["epoch"] == 2
    assert int(newest_state(tmp_path / "run")[1]["step"]) == 8
    with pytest.raises(RunError, match=r"fell from 70.0 % to 40.0 %"):  # the same after a resume
        list(train_run(config, tmp_path / "run", resume=True))


def test_averaged_weights_are_saved_and_tested(config, tmp_path):
    """The average follows the weights step by step, and is what is saved as the network."""
    config = replace(config, train=replace(config.train, epochs=1, milestones=()))
    mean = None
    from robust_lr.training import loop as train_room

    for _ in train_run(config, tmp_path / "run"):
        pass
    plain, steps = {}, []
    update = train_room.AveragedModel.update_parameters

    def spy(self, model):
        update(self, model)
        steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_room.AveragedModel, "update_parameters", spy)
        list(train_run(config, tmp_path / "again"))
    for plain in steps:
        mean = plain if mean is None else {n: 0.9 * mean[n] + 0.1 * plain[n] for n in plain}
    saved = read_tensors(tmp_path / "run" / WEIGHTS)[0]
    for name, tensor in saved.items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, mean[name], atol=1e-6), name
    assert not torch.allclose(saved["fc.weight"], plain["fc.weight"], atol=1e-4)
    last = read_metrics(tmp_path / "run")[-1]
    assert last["test_accuracy"] == accuracy(load_model(tmp_path / "run"), prepare(config).test)
