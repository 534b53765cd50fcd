"""Several processes train as one. Most tests fork the group that torchrun would start; two start torchrun itself."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import noise
from PIL import Image
from torch import nn

from robust_lr.config.sections import ComputeConfig, DataConfig, TrainConfig, ValidationConfig
from robust_lr.config.training import Config
from robust_lr.data.dataset import from_arrays
from robust_lr.data.encoded import Unreadable
from robust_lr.data.loader import shuffle_positions
from robust_lr.data.registry import load
from robust_lr.models.build import build_model
from robust_lr.models.checkpoint import WEIGHTS, read_tensors
from robust_lr.protocols.pgd import PGD
from robust_lr.protocols.presets import get
from robust_lr.training import run as runs
from robust_lr.training.distributed import Group, average_buffers, join_group
from robust_lr.training.loop import adversarial_train, micro_batches
from robust_lr.training.run import prepare, train_run
from robust_lr.training.run_folder import read_metrics
from robust_lr.training.run_writer import Record
from robust_lr.training.signals import Interrupted
from robust_lr.training.sync_batchnorm import SyncedBatchNorm2d, synchronize_batch_norms
from robust_lr.training.train_state import list_states, read_state
from robust_lr.training.validation import accuracy
from robust_lr.utils.devices import device_of_process
from robust_lr.utils.errors import InputError, RunError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
PGD2 = PGD(eps=8 / 255, step_size=4 / 255, steps=2, targeted=True)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Failed:
    """Outcome of a process."""

    kind: type
    words: str
    code: int | None = None


@pytest.fixture
def group(tmp_path):
    """Call ``group(n, work)``: what ``work(rank)`` gives in each of n processes, or the error that it raises."""
    numbers = count()

    def run(n, work):
        meeting, results = tmp_path / f"meeting{next(numbers)}", multiprocessing.get_context("fork").SimpleQueue()

        def process(rank):
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=n)
            try:
                results.put((rank, work(rank)))
            except BaseException as error:
                results.put((rank, Failed(type(error), str(error), getattr(error, "code", None))))
            finally:
                dist.destroy_process_group()

        children = [multiprocessing.get_context("fork").Process(target=process, args=(rank,)) for rank in range(n)]
        for child in children:
            child.start()
        found = dict(results.get() for _ in children)
        for child in children:
            child.join()
        return [found[rank] for rank in range(n)]

    return run


def pictures(n=24, classes=4, size=12):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    images = 0.5 * torch.rand(n, 1, size, size, generator=generator)
    images[torch.arange(n), 0, 2 * labels] += 0.5
    return from_arrays(images, labels, ids=1000 + 7 * torch.arange(n))


def settings(attack=PGD2, augment="flip-crop", sync_batchnorm=True, micro_batch=0, **train):
    schedule = {"epochs": 2, "batch_size": 8, "lr": 0.05, "warmup_epochs": 1, "milestones": (1,), "threads": 1}
    return Config(
        seed=3,
        model={"name": "resnet18", "width": 1 / 16, "stem": "small"},
        data=DataConfig(augment=augment),
        attack=attack,
        train=TrainConfig(**{**schedule, **train}),
        compute=ComputeConfig(sync_batchnorm=sync_batchnorm, micro_batch=micro_batch),
    )


def network(name="resnet18"):
    torch.manual_seed(0)
    return build_model(name, num_classes=4, in_channels=1, width=1 / 16, stem="small")


def plain(model):
    """A state dict that can be sent to another process."""
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


class Double(nn.Module):
    """A network that computes in float64."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner.double()

    def forward(self, x):
        return self.inner(x.double())


def trained(config, data=None, make=network):
    """Work of a group: train, and give weights and metrics."""

    def work(rank):
        model = make()
        with join_group(CPU) as ours:
            steps = list(adversarial_train(model, data or pictures(), config, group=ours))
        return plain(model), [(s.loss, s.accuracy, s.images) for s in steps]

    return work


def assert_close(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        assert np.abs(one[name] - other[name]).max() <= tolerance, name


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (get("none"), {}),
        (PGD2, {}),
        (replace(PGD2, targeted=False), {"loss": "trades", "epochs": 1}),
        (PGD2, {"mix": 0.5, "clean_start": 0.3, "label_smoothing": 0.1}),
        (PGD2, {"batch_size": 7}),
    ],
)
def test_two_processes_agree_with_one_on_the_same_global_batch(group, attack, options):
    config = settings(attack, **options)
    alone, steps_alone = trained(config)(0)
    (first, steps), (second, steps_of_second) = group(2, trained(config))
    assert_equal(first, second)
    assert_close(first, alone)
    assert steps == steps_of_second
    for ours, theirs in zip(steps, steps_alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("attack", [get("none"), PGD2])
def test_two_processes_agree_with_one_on_an_lrnet(group, attack):
    """In float64: a network of this size, fresh and with 8 images a batch, amplifies the rounding of float32."""
    config = settings(attack, epochs=1)
    alone, _ = trained(config, make=lambda: Double(network("lrnet26")))(0)
    two, _ = group(2, trained(config, make=lambda: Double(network("lrnet26"))))[0]
    assert_close(two, alone, 1e-11)


def test_batch_norm_is_local_by_default(group):
    """With statistics of each process, two are one that takes two micro-batches."""
    config = settings(get("none"), sync_batchnorm=False)
    two = group(2, trained(config))
    split, _ = trained(settings(get("none"), sync_batchnorm=False, micro_batch=4))(0)
    whole, _ = trained(config)(0)
    parameters = [name for name, _ in network().named_parameters()]
    assert_equal(two[0][0], two[1][0])
    assert_close({n: two[0][0][n] for n in parameters}, {n: split[n] for n in parameters}, 1e-6)
    assert np.abs(two[0][0]["fc.weight"] - whole["fc.weight"]).max() > 1e-4


def test_running_statistics_are_those_of_all_processes(group):
    config = settings(get("none"), sync_batchnorm=False, epochs=1, batch_size=24)
    two, _ = group(2, trained(config))[0]
    model, data = network(), pictures()
    from robust_lr.data.augmentation import AUGMENTATIONS

    x, _, ids = data.batch(shuffle_positions(data, 24, seed=3, epoch=0)[0])
    x = AUGMENTATIONS["flip-crop"](x, ids, 3, 0)
    halves = []
    for half in x.split(12):
        part = network().train()
        part(half)
        halves.append(part.bn1.running_mean)
    assert np.allclose(two["bn1.running_mean"], torch.stack(halves).mean(0).numpy(), atol=1e-6)
    assert not torch.equal(model.bn1.running_mean, halves[0])


@pytest.mark.parametrize("micro", [3, 4])
def test_micro_batches_add_up_to_the_batch(micro):
    """Without batch norm, splitting a batch changes nothing but rounding."""

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 4))

    one, other = model(), model()
    whole = list(adversarial_train(one, pictures(), settings()))
    parts = list(adversarial_train(other, pictures(), settings(micro_batch=micro)))
    assert_close(plain(one), plain(other), 1e-6)
    assert [s.loss for s in parts] == pytest.approx([s.loss for s in whole], abs=1e-5)
    assert [s.accuracy for s in parts] == pytest.approx([s.accuracy for s in whole])


def test_a_batch_with_one_image_for_batch_norm_is_refused():
    assert [micro_batches(settings(micro_batch=m), size) for m, size in ((0, 4), (2, 4), (3, 1), (8, 1))] == [
        1,
        1,
        3,
        1,
    ]
    with pytest.raises(InputError, match=r"train.batch_size = 8 on 5 processes: batch norm needs at least 2 images"):
        micro_batches(settings(), 5)
    with pytest.raises(InputError, match=r"on 3 processes and compute.micro_batch = 2"):
        micro_batches(settings(micro_batch=2), 3)


def test_synchronized_batch_norm_is_batch_norm_over_all(group):
    """Output, gradients and running statistics, on uneven shares."""
    torch.manual_seed(0)
    x, weights = torch.randn(7, 3, 4, 5), torch.randn(7, 3, 4, 5)

    def results(layer, rows):
        layer.weight.data.uniform_(1, 2, generator=torch.Generator().manual_seed(1))
        part = x[rows].clone().requires_grad_()
        y = layer(part)
        (y * weights[rows]).sum().backward()
        gradients = layer.weight.grad, layer.bias.grad
        if dist.is_initialized():
            for gradient in gradients:
                dist.all_reduce(gradient)
        return [t.detach().numpy() for t in (y, part.grad, *gradients, layer.running_mean, layer.running_var)]

    whole = results(nn.BatchNorm2d(3), slice(None))
    parts = group(2, lambda rank: results(SyncedBatchNorm2d(3), [slice(0, 3), slice(3, 7)][rank]))
    for i, expected in enumerate(whole):
        found = np.concatenate([part[i] for part in parts]) if i < 2 else parts[0][i]
        assert np.allclose(found, expected, atol=1e-5), i


def test_a_synchronized_twin_shares_everything_with_its_model():
    model = network()
    twin = synchronize_batch_norms(model)
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(a is b for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert type(model.bn1) is nn.BatchNorm2d
    assert type(twin.bn1) is SyncedBatchNorm2d
    x = torch.rand(4, 1, 12, 12)
    assert torch.equal(twin.eval()(x), model.eval()(x))


def run_settings(tmp_path, sync_batchnorm=True, **train):
    file = tmp_path / "small.npz"
    if not file.exists():
        noise(file, 12, 3, train=24, test=9)
    config = settings(sync_batchnorm=sync_batchnorm, **train)
    return replace(config, data=replace(config.data, name=f"npz:{file}"))


def run(config, folder, stop=0, resume=False):
    """Work of a group: a run, told to stop after a step in one process only."""

    def work(rank):
        for step in train_run(config, folder, resume=resume):
            if step.step == stop and rank == dist.get_world_size() - 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return "done"

    return work


def final(folder):
    tensors, about = read_state(list_states(folder)[0])
    return {name: tensor.numpy() for name, tensor in tensors.items()}, about["step"]


@pytest.mark.parametrize("sync_batchnorm", [True, False])
def test_three_processes_resume_to_the_bit(group, tmp_path, sync_batchnorm):
    config = run_settings(tmp_path, sync_batchnorm, ema=0.5)
    assert group(3, run(config, tmp_path / "straight")) == ["done"] * 3
    stopped = group(3, run(config, tmp_path / "run", stop=2))
    assert [error.kind for error in stopped] == [Interrupted, SystemExit, SystemExit]
    assert [error.code for error in stopped[1:]] == [128 + signal.SIGTERM] * 2
    assert final(tmp_path / "run")[1] == "2"
    assert group(3, run(config, tmp_path / "run", resume=True)) == ["done"] * 3
    (ours, step), (theirs, steps) = final(tmp_path / "run"), final(tmp_path / "straight")
    assert step == steps == "6"
    assert_equal(ours, theirs)
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["processes"] == 3
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_run_continues_with_another_number_of_processes(group, tmp_path):
    config = run_settings(tmp_path)
    list(train_run(config, tmp_path / "alone"))
    group(2, run(config, tmp_path / "run", stop=2))
    list(train_run(config, tmp_path / "run", resume=True))
    assert_close(final(tmp_path / "run")[0], final(tmp_path / "alone")[0])
    ours, theirs = (read_metrics(tmp_path / name) for name in ("run", "alone"))
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one.get("test_accuracy") == other.get("test_accuracy")


def test_accuracy_is_divided_among_processes(group):
    model, data = network().eval(), pictures(25)
    alone = accuracy(model, data, PGD2, seed=1)

    def work(rank):
        with join_group(CPU) as ours:
            return accuracy(model, data, seed=1, group=ours), accuracy(model, data, PGD2, seed=1, group=ours)

    assert group(2, work) == [(accuracy(model, data), alone)] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_without_images_takes_part_in_an_accuracy(group, tmp_path, workers):
    """Two images for three processes, of files: these cannot be stacked where there are none."""
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (12, 12), {"a": "red", "b": "blue"}[name]).save(tmp_path / "pictures" / name / "0.png")
    data = load(f"folder:{tmp_path / 'pictures'}")
    model = build_model("resnet18", num_classes=2, width=1 / 16, stem="small").eval()

    def work(rank):
        with join_group(CPU) as ours:
            return accuracy(model, data, PGD2, seed=1, workers=workers, group=ours)

    assert group(3, work) == [accuracy(model, data, PGD2, seed=1)] * 3


def test_an_error_of_the_first_process_ends_all_and_is_raised_once(group, tmp_path):
    config = run_settings(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    first, second = group(2, run(config, tmp_path / "used"))
    assert first.kind is InputError
    assert "is not empty and holds no run" in first.words
    assert (second.kind, second.code) == (SystemExit, 2)


def test_an_error_of_another_process_ends_all_and_is_raised_once(group):
    def failing(kind, *ranks):
        def work(rank):
            def fail():
                if rank in ranks:
                    raise kind(f"told by {rank}")
                return rank

            with join_group(CPU) as ours:
                return ours.run_on_all(fail)

        return work

    assert group(3, failing(InputError)) == [0, 1, 2]
    first, second, third = group(3, failing(InputError, 1, 2))
    assert (second.kind, second.words) == (InputError, "told by 1")
    assert (first.kind, first.code) == (third.kind, third.code) == (SystemExit, 2)
    for kind in (RunError, OSError):
        first, second, _ = group(3, failing(kind, 0))
        assert (first.kind, first.words) == (kind, "told by 0")
        assert (second.kind, second.code) == (SystemExit, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_one_process_cannot_read_ends_all(group, tmp_path, workers):
    generator = np.random.default_rng(0)
    for i in range(8):
        (tmp_path / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png")
    config = settings(epochs=1, milestones=())
    config = replace(config, data=DataConfig(name=f"folder:{tmp_path / 'pictures'}", workers=workers))
    data = prepare(config).train
    bad = shuffle_positions(data, 8, seed=3, epoch=0)[0][7]
    (tmp_path / "pictures" / data.source.paths[bad]).write_bytes(b"no image")
    first, second = group(2, run(config, tmp_path / "run"))
    assert (first.kind, first.code) == (SystemExit, 2)
    assert second.kind is Unreadable
    assert data.source.paths[bad] in second.words


def test_a_first_process_that_cannot_write_ends_all(group, tmp_path, monkeypatch):
    def full(self, step, best=None):
        with self.name_write_errors(step.step):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Record, "add", full)
    first, second = group(2, run(run_settings(tmp_path), tmp_path / "run"))
    assert first.kind is RunError
    assert "No space left on device, at step 1" in first.words
    assert (second.kind, second.code) == (SystemExit, 1)


def test_machines_with_other_images_are_refused(group, tmp_path):
    config = run_settings(tmp_path)

    def work(rank):
        fewer = replace(config, data=replace(config.data, limit=24 - rank))
        return list(train_run(fewer, tmp_path / "run"))

    first, second = group(2, work)
    assert first.kind is InputError
    assert "the processes have different training images" in first.words
    assert (second.kind, second.code) == (SystemExit, 2)


def test_only_the_first_process_hashes_and_each_loads_its_images_once(group, tmp_path, monkeypatch):
    calls = []
    load_once, hash_once = runs.data_room.load, runs.content_hash
    monkeypatch.setattr(runs.data_room, "load", lambda name, split, root: calls.append(split) or load_once(name, split))
    monkeypatch.setattr(
        runs, "content_hash", lambda data, images=True: calls.append(images) or hash_once(data, images=images)
    )
    config = replace(run_settings(tmp_path), validation=ValidationConfig(images=4))

    def work(rank):
        next(train_run(config, tmp_path / "run"))
        return calls

    assert group(2, work) == [["train", "test", False, True, True], ["train", "test", False]]


def test_a_process_that_fails_alone_leaves_without_the_others(monkeypatch):
    """NCCL would wait for them."""
    left = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(dist, "init_process_group", lambda *arguments, **options: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(True))
    for error, expected in ((None, 1), (InputError("all"), 2), (SystemExit(1), 3), (ValueError("alone"), 3)):
        with nullcontext() if error is None else pytest.raises(type(error)), join_group(CPU):
            if error is not None:
                raise error
        assert len(left) == expected


def test_a_loss_that_is_not_finite_in_one_process_ends_all(group):
    def work(rank):
        model = network()
        if rank == 1:
            model.register_forward_hook(lambda module, inputs, out: out * torch.nan)
        before = plain(model)
        with join_group(CPU) as ours:
            try:
                list(adversarial_train(model, pictures(), settings(), group=ours))
            except (RunError, SystemExit) as error:
                after = plain(model)
                return type(error), all(np.array_equal(before[n], after[n]) for n, _ in model.named_parameters())

    assert group(2, work) == [(RunError, True), (SystemExit, True)]


def test_a_process_that_dies_leaves_the_other_a_clear_error(group):
    def work(rank):
        with join_group(CPU) as ours:
            dist.barrier()
            if rank == 1:
                return "gone"
            time.sleep(0.5)
            return ours.sum(torch.zeros(3))

    first, second = group(2, work)
    assert second == "gone"
    assert first.kind is RunError
    assert "process 0 of 2 lost contact with the others" in first.words


def test_one_process_is_a_group_of_one():
    with join_group(CPU) as alone:
        assert alone == Group()
        assert alone.total(3) == alone.maximum(3) == 3
        assert alone.share(torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_each_process_of_a_machine_has_its_own_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    names = ("auto", "cuda", "cuda:1", "cpu")
    assert [device_of_process(name) for name in names] == list(names)
    for key, value in {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    assert [device_of_process(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert taken == [1, 1]
    with pytest.raises(InputError, match="device 'cuda:1' cannot be shared by 2 processes: use 'cuda'"):
        device_of_process("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="there is no GPU for process 2 of this machine, which has 2"):
        device_of_process("cuda")


def torchrun(*words, program=("-m", "robust_lr"), **options):
    """``torchrun -m robust_lr adv-train`` with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *program, "adv-train", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def children(process):
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=True)
    return [int(number) for number in found.stdout.split()]


@pytest.fixture
def words(tmp_path):
    config = run_settings(tmp_path)
    from robust_lr.config.training import to_toml

    (tmp_path / "config.toml").write_text(to_toml(config))
    return str(tmp_path / "config.toml"), "--out", str(tmp_path / "run"), "--set", "train.epochs=2"


def test_torchrun_trains_and_reports_once(words, tmp_path):
    process = torchrun(*words, stdout=subprocess.PIPE)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out.count("Trained resnet18 for 2 epochs") == 1
    assert errors.count("epoch 2 of 2") == 1
    alone = run_settings(tmp_path)
    list(train_run(alone, tmp_path / "alone"))
    assert_close(
        *({n: t.numpy() for n, t in read_tensors(tmp_path / f / WEIGHTS)[0].items()} for f in ("run", "alone"))
    )


def test_a_killed_worker_ends_torchrun_and_saved_states_are_kept(words, tmp_path):
    process = torchrun(*words[:-2], "--set", "train.epochs=2000", "--set", "train.milestones=[]")
    while process.poll() is None and not (list_states(tmp_path / "run") if (tmp_path / "run").exists() else []):
        time.sleep(0.05)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in errors
    assert final(tmp_path / "run")


#: the command line in a process that leaves its exit code in the folder
PROGRAM = """
import os, pathlib, sys
from robust_lr import cli
try:
    cli.main()
except SystemExit as stop:
    (pathlib.Path(sys.argv[0]).parent / ("code" + os.environ["RANK"])).write_text(str(stop.code))
"""


def told_by_torchrun(process):
    """A job system: it signals torchrun, which hands that on to the process groups of its processes, and these, too."""
    for worker in children(process.pid):
        os.kill(worker, signal.SIGTERM)
    process.terminate()


def interrupted_by_hand(process):
    """Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize(("stop", "number"), [(told_by_torchrun, signal.SIGTERM), (interrupted_by_hand, signal.SIGINT)])
def test_torchrun_forwards_signals_and_the_state_is_saved(words, tmp_path, stop, number):
    """The processes that load images are signaled, too."""
    (tmp_path / "program.py").write_text(PROGRAM)
    more = [word for key in ("epochs=20000", "milestones=[]") for word in ("--set", f"train.{key}")]
    process = torchrun(
        *words[:-2], *more, "--set", "data.workers=1", program=(str(tmp_path / "program.py"),), start_new_session=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 5):
        time.sleep(0.02)
    stop(process)
    _, errors = process.communicate(timeout=180)
    assert [(tmp_path / f"code{rank}").read_text() for rank in (0, 1)] == [str(128 + number)] * 2, errors
    assert errors.count(f"robust-lr: stopped by {number.name} after step ") == 1
    assert "loads images" not in errors
    assert final(tmp_path / "run")[1] == str(len(read_metrics(tmp_path / "run")))


def test_averaging_leaves_constants_alone():
    """Seven times a number, divided by seven, need not be that number."""

    class Alike(Group):
        def sum(self, values):
            return values.copy_(sum(values for _ in range(self.size)))

    model = build_model("resnet18", num_classes=2, width=0.05)
    model.bn1.running_mean.fill_(0.485)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    average_buffers(model, Alike(size=7))
    assert not torch.equal(model.bn1.running_mean, before["bn1.running_mean"])  # this one is averaged
    for name in ("normalize.mean", "normalize.std"):
        assert torch.equal(model.get_buffer(name), before[name])
