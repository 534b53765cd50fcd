"""Precision, memory format, compilation, TensorBoard: options that change how a run computes or reports, not what."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from helpers import noise, small_run, until
from torch import nn
from torch.nn import functional as F

from robust_lr.config.sections import ComputeConfig, OutputConfig, TrainConfig
from robust_lr.config.training import Config, load
from robust_lr.data.dataset import from_arrays
from robust_lr.models.build import build_model
from robust_lr.protocols.pgd import PGD
from robust_lr.training import run_writer as record
from robust_lr.training.loop import adversarial_train
from robust_lr.training.run import train_run
from robust_lr.training.run_folder import PROVENANCE, read_metrics
from robust_lr.utils.errors import InputError

PGD1 = PGD(eps=8 / 255, step_size=4 / 255, steps=1)


def pictures(n=16):
    generator = torch.Generator().manual_seed(0)
    return from_arrays(torch.rand(n, 3, 12, 12, generator=generator), torch.arange(n) % 4)


def settings(**compute):
    train = TrainConfig(epochs=1, batch_size=8, lr=0.05, warmup_epochs=0, milestones=())
    return Config(attack=PGD1, train=train, compute=ComputeConfig(**compute))


def network(name="resnet18"):
    torch.manual_seed(0)
    return build_model(name, num_classes=4, width=1 / 16, stem="small")


class Spy(nn.Module):
    """Record of what reaches a network: precision of its convolution, and whether it is attacked."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(400, 4)
        self.seen = []

    def forward(self, x):
        y = self.conv(x)
        self.seen.append((self.training, y.dtype))
        return self.fc(y.relu().flatten(1))


@pytest.mark.parametrize("training", ["fp32", "bf16"])
@pytest.mark.parametrize("attack", ["fp32", "bf16"])
def test_training_and_attack_each_have_their_precision(training, attack):
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    model = Spy()
    list(adversarial_train(model, pictures(), settings(precision=training, attack_precision=attack)))
    assert model.seen == [(False, dtypes[attack]), (True, dtypes[training])] * 2
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["resnet18", "lrnet26"])
def test_bf16_learns_what_fp32_learns_roughly(name):
    exact, rough = (
        [s.loss for s in adversarial_train(network(name), pictures(), settings(precision=p, attack_precision=p))]
        for p in ("fp32", "bf16")
    )
    assert exact != rough
    assert rough == pytest.approx(exact, abs=0.05)


def test_the_caller_s_autocast_does_not_affect_a_run():
    model = Spy()
    with torch.autocast("cpu", torch.bfloat16):
        list(adversarial_train(model, pictures(), settings()))
    assert {dtype for _, dtype in model.seen} == {torch.float32}


def test_images_are_channels_last():
    model, formats = network(), []
    model.layer1.register_forward_hook(
        lambda module, inputs, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    list(adversarial_train(model, pictures(), settings()))
    assert formats
    assert all(formats)


def test_a_compiled_run_learns_the_same(monkeypatch):
    """torch.compile takes the training pass and the attack; its backends are PyTorch's business."""
    compiled, compile_ = [], torch.compile

    def spy(model, mode):
        compiled.append((type(model).__name__, mode))
        return compile_(model, backend="eager")

    monkeypatch.setattr(torch, "compile", spy)
    plain = [s.loss for s in adversarial_train(network(), pictures(), settings())]
    found = [s.loss for s in adversarial_train(network(), pictures(), settings(compile="reduce-overhead"))]
    assert compiled == [("ResNet", "reduce-overhead")] * 2
    assert found == pytest.approx(plain, abs=1e-4)


def run_settings(tmp_path, **sections):
    values = ["model.name=resnet18", "model.width=0.0625", "model.stem=small", "data.limit=32", "train.threads=1"]
    values += ["attack.steps=1", "train.epochs=1", "train.batch_size=16", "train.milestones=[]", "validation.images=8"]
    return replace(load(None, values), **sections)


def test_a_run_records_its_precision(tmp_path):
    config = run_settings(tmp_path, compute=ComputeConfig(attack_precision="bf16"))
    list(train_run(config, tmp_path / "run"))
    provenance = json.loads((tmp_path / "run" / PROVENANCE).read_text())
    assert provenance["precision"] == {"training": "fp32", "attack": "bf16"}
    assert provenance["processes"] == 1


def test_tensorboard_gets_the_metrics(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    monkeypatch.setattr(record, "summary_writer", lambda: Writer)
    monkeypatch.setattr("robust_lr.training.run.summary_writer", lambda: Writer)
    config = run_settings(tmp_path, output=OutputConfig(tensorboard=True))
    list(train_run(config, tmp_path / "run"))
    lines = read_metrics(tmp_path / "run")
    assert written[0] == (str(tmp_path / "run" / "tensorboard"), 1)
    assert written[-1] == "closed"
    scalars = {(name, step): value for name, value, step in written[1:-1]}
    for line in lines:
        for name in ("loss", "accuracy", "lr", "test_accuracy", "validation_accuracy", "robust_accuracy"):
            assert scalars.get((name, line["step"])) == line.get(name)
    assert ("robust_accuracy", len(lines)) in scalars


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    """Read back with TensorBoard itself, where it is installed."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    values = ["output.tensorboard=true", "validation.images=8"]
    config = load(None, small_run(noise(tmp_path / "small.npz", 12, 3, train=48, test=20), *values))
    until(config, tmp_path / "run", 8)
    list(train_run(config, tmp_path / "run", resume=True))
    board = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = read_metrics(tmp_path / "run")
    for name in record.CURVES:
        wanted = {line["step"]: line[name] for line in lines if name in line}
        assert {event.step: event.value for event in board.Scalars(name)} == pytest.approx(wanted)
        assert len(board.Scalars(name)) == len(wanted)


def test_tensorboard_that_is_missing_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = run_settings(tmp_path, output=OutputConfig(tensorboard=True))
    with pytest.raises(InputError, match="the package tensorboard is not installed; pip install tensorboard"):
        next(train_run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_label_smoothing_follows_its_definition():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    from robust_lr.training.loop import compute_loss

    config = replace(settings(), train=replace(settings().train, label_smoothing=0.1))
    loss, same = compute_loss(lambda x: logits, logits, logits, labels, 4, config)
    wanted = 0.9 * F.one_hot(labels, 4) + 0.1 / 4
    assert loss.item() == pytest.approx(-(wanted * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-6)
    assert same is logits
