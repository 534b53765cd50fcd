"""Training: what a step costs, what several processes gain, whether loading hides, how long a checkpoint takes.

    python benchmarks/training.py --out FILE [--device cuda] [--only NAME ...] [--data npz:PATH]

Parts, each a ratio measured in one run, with the candidates taking turns. A file that exists is added to:
  step        an adversarial step (16 attack steps and one of training) against a regular one of the same network, and
              the straightforward loop (`.backward()` in the attack, NCHW, nothing folded) against ours; on a CPU each
              in processes of its own with PyTorch's defaults, ours as `robust-lr adv-train`
  processes   two processes under torchrun against one with two threads, the same batch; CPU only
  loading     the share of the time that training at 224 pixels waits for images, JPEGs decoded by workers
  checkpoint  the pause of one save, against an epoch of 10 minutes

Networks are LR-Net-26 and ResNet-26; `--width` and `--size` choose theirs. For `loading` JPEGs are made, or taken from
--data.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from local_relation import measure
from own_process import run_command
from PIL import Image
from torch import Tensor, nn

from robust_lr import build_model, config, data, protocols
from robust_lr.config.training import Config
from robust_lr.data.dataset import Dataset
from robust_lr.ops import library
from robust_lr.training import run as runs
from robust_lr.training.loop import adversarial_train, make_optimizer
from robust_lr.training.metrics import Metrics
from robust_lr.training.run_folder import read_metrics
from robust_lr.training.run_writer import state_of
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

NETWORKS = {"LR-Net-26": "lrnet26", "ResNet-26": "resnet26"}
EPOCH_SECONDS = 600.0


def settings(arguments: argparse.Namespace, protocol: str, *more: str) -> Config:
    """Return the config of a training run that practically never ends."""
    values = [f"attack.protocol={protocol}", f"train.batch_size={arguments.batch}", "train.milestones=[]"]
    return config.load(None, [*values, "train.epochs=1000000", f"train.device={arguments.device}", *more])


def pictures(arguments: argparse.Namespace) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch, arguments.channels, arguments.size, arguments.size)
    labels = torch.arange(arguments.batch) % 10
    return data.from_arrays(torch.rand(shape, generator=generator), labels, num_classes=10)


def network(arguments: argparse.Namespace, name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(
        name, num_classes=10, in_channels=arguments.channels, width=arguments.width, stem=arguments.stem
    )
    return model.to(arguments.device)


def stepper(arguments: argparse.Namespace, name: str, protocol: str) -> Callable[[], object]:
    """Return a function that takes one of our training steps at each call."""
    steps = adversarial_train(network(arguments, name), pictures(arguments), settings(arguments, protocol))
    return lambda: finished(arguments, next(steps))


def finished(arguments: argparse.Namespace, value: object) -> object:
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    return value


def straightforward(arguments: argparse.Namespace, name: str) -> Callable[[], object]:
    """Return the step of the usual loop (Madry's and many others'): nothing folded, all gradients in every pass."""
    model = network(arguments, name).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images, labels, _ = pictures(arguments).batch(torch.arange(arguments.batch))
    x, y = images.to(arguments.device), labels.to(arguments.device)
    protocol = protocols.get_pgd("lrnet-train")
    eps, step_size = protocol.eps, protocol.step_size

    def attack(target: Tensor) -> Tensor:
        x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(protocol.steps):
            x_adv = x_adv.detach().requires_grad_()
            F.cross_entropy(model(x_adv), target).backward()
            assert x_adv.grad is not None
            x_adv = x_adv.detach() - step_size * x_adv.grad.sign()
            x_adv = torch.max(torch.min(x_adv, x + eps), x - eps).clamp(0, 1)
        return x_adv

    def step() -> object:
        model.eval()
        x_adv = attack((y + 1) % 10)
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x_adv), y)
        loss.backward()
        optimizer.step()
        return finished(arguments, loss.item())

    return step


def timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def steps(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step, and ratios; on a CPU, every candidate runs in processes of its own, in turns."""
    if arguments.device != "cpu":
        return {label: steps_in_this_process(arguments, name) for label, name in NETWORKS.items()}
    record = {}
    for label, name in NETWORKS.items():
        found: dict[str, list[float]] = {"regular": [], "adversarial": [], "straightforward": []}
        for _ in range(arguments.rounds):
            for candidate, seconds in found.items():
                seconds.append(seconds_of_a_step(arguments, name, candidate))
        record[label] = {**ratios({candidate: median(seconds) for candidate, seconds in found.items()}), "all": found}
    return record


def steps_in_this_process(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """The same for candidates that take turns in this process, on a GPU."""
    candidates = {
        "regular": stepper(arguments, name, "none"),
        "adversarial": stepper(arguments, name, "lrnet-train"),
        "straightforward": straightforward(arguments, name),
    }
    return ratios(measure(candidates, arguments.repeats))


def ratios(seconds: dict[str, float]) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "adversarial_over_regular": seconds["adversarial"] / seconds["regular"],
        "straightforward_over_adversarial": seconds["straightforward"] / seconds["adversarial"],
    }


def seconds_of_a_step(arguments: argparse.Namespace, name: str, candidate: str) -> float:
    """Median seconds of a step in a new process, without its first two; ours are the steps of `robust-lr adv-train`.

    Variables that set the number of threads and how they wait are not passed on.
    """
    if candidate == "straightforward":
        command = [sys.executable, __file__, "--out", os.devnull, "--run", name, "--repeats", str(arguments.repeats)]
        for option in ("width", "stem", "size", "channels", "batch"):
            command += [f"--{option}", str(getattr(arguments, option))]
        if arguments.threads:
            command += ["--threads", str(arguments.threads)]
        return float(run_command(command).split()[-1])
    protocol = "none" if candidate == "regular" else "lrnet-train"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "robust_lr",
            "adv-train",
            "lrnet26_fashion_mnist_mini",
            "--out",
            f"{folder}/run",
        ]
        threads = [f"train.threads={arguments.threads}"] if arguments.threads else []
        command += settings_of_a_run(arguments, name, f"attack.protocol={protocol}", *attack_values(protocol), *threads)
        run_command(command)
        return median(line["seconds"] for line in read_metrics(f"{folder}/run")[2:])


def attack_values(protocol: str) -> list[str]:
    """Settings that give an attack the protocol's own values, whatever the config that the run starts from says."""
    attack = protocols.get_pgd(protocol)
    return [f"attack.{key}={getattr(attack, key)}" for key in ("eps", "step_size", "steps")]


def settings_of_a_run(arguments: argparse.Namespace, name: str, *more: str) -> list[str]:
    """Options of `adv-train` for a run of two warm-up steps and the measured ones."""
    values = [f"model.name={name}", f"model.width={arguments.width}", f"model.stem={arguments.stem}"]
    values += [f"train.batch_size={arguments.batch}", "train.epochs=1", "train.milestones=[]", "train.device=cpu"]
    values += [f"data.limit={arguments.batch * (arguments.repeats + 2)}", *more]
    return [word for value in values for word in ("--set", value)]


def processes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step in whole runs, without their first two steps; two runs of each kind, in turns.

    Threads that wait for each other sleep, which is best if other work runs on the machine; on an idle machine two
    threads are faster if they spin instead, so one candidate does.
    """
    record = {}
    spinning = "one process, two spinning threads"
    for label, name in NETWORKS.items():
        rates: dict[str, list[float]] = {
            "one process, two threads": [],
            spinning: [],
            "two processes, one thread each": [],
        }
        for _ in range(2):
            for which, seconds in rates.items():
                two = which.startswith("two")
                with tempfile.TemporaryDirectory() as folder:
                    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
                    command += ["2" if two else "1", "-m", "robust_lr", "adv-train", "lrnet26_fashion_mnist_mini"]
                    threads = f"train.threads={1 if two else 2}"
                    command += ["--out", folder + "/run"]
                    command += settings_of_a_run(
                        arguments, name, "attack.protocol=lrnet-train", *attack_values("lrnet-train"), threads
                    )
                    policy = "ACTIVE" if which == spinning else "PASSIVE"
                    environment = {**os.environ, "OMP_NUM_THREADS": "1" if two else "2", "OMP_WAIT_POLICY": policy}
                    run_command(command, environment)
                    seconds.append(median(line["seconds"] for line in read_metrics(folder + "/run")[2:]))
        medians = {which: median(seconds) for which, seconds in rates.items()}
        sleeping, spun, both = medians.values()
        record[label] = {
            "seconds_a_step": medians,
            "two_processes_over_one": sleeping / both,
            "two_processes_over_one_that_spins": spun / both,
        }
    return record


def loading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The share of the training time that is spent waiting for images, without the first two steps."""
    record = {}
    with jpegs(arguments) as name:
        images = data.load(name, "train", transform=runs.TRANSFORMS["imagenet"])
        for label, network_name in NETWORKS.items():
            for protocol in ("none", "lrnet-train"):
                torch.manual_seed(0)
                model = build_model(network_name, num_classes=images.num_classes, width=arguments.width)
                more = [f"data.workers={arguments.workers}", "data.augment=imagenet"]
                found: list[Metrics] = []
                run = adversarial_train(model.to(arguments.device), images, settings(arguments, protocol, *more))
                for step in run:
                    found.append(step)
                    if len(found) == arguments.repeats + 2:
                        break
                run.close()
                waited, worked = (sum(getattr(s, key) for s in found[2:]) for key in ("waited", "seconds"))
                record[f"{label}, {protocol}"] = {
                    "images_per_second": sum(s.images for s in found[2:]) / (waited + worked),
                    "waiting_share": waited / (waited + worked),
                }
    return record


@contextmanager
def jpegs(arguments: argparse.Namespace) -> Iterator[str]:
    """The name of `--data` or, by default, of a temporary data set of JPEGs as large as ImageNet's."""
    if arguments.data:
        yield arguments.data
        return
    generator = np.random.default_rng(0)
    files = []
    for _ in range(2 * arguments.batch):
        noise = Image.fromarray(generator.integers(0, 256, (24, 32, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        buffer = io.BytesIO()
        noise.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        offsets = np.cumsum([0, *map(len, files)])
        blob = np.frombuffer(b"".join(files), np.uint8)
        np.savez(f"{folder}/jpegs.npz", jpg=blob, off=offsets, y=np.arange(len(files)) % 10)
        yield f"npz:{folder}/jpegs.npz"


def checkpoints(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one save of a network of the paper's width: weights, provenance and state, with their fsyncs."""
    record = {}
    for label, name in NETWORKS.items():
        model = build_model(name).to(arguments.device)
        optimizer = make_optimizer(model, config.TrainConfig())
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
            spec = {"name": name, "num_classes": 1000, "in_channels": 3}
            saver = runs.Record(settings(arguments, "none"), Path(folder), spec, {"data_sha256": ""})
            step = Metrics(
                step=1, steps=2, epoch=1.0, loss=1.0, accuracy=0.0, lr=0.1, seconds=1.0, waited=0.0, images=1
            )
            seconds = []
            with saver.open(0):
                for number in range(1, arguments.repeats + 1):
                    began = time.perf_counter()
                    saver.save(replace(step, step=number, steps=99), state_of(model, optimizer, None), model)
                    seconds.append(time.perf_counter() - began)
        record[label] = {
            "seconds": median(seconds),
            "megabytes": sum(t.numel() * t.element_size() for t in state_of(model, optimizer, None).values()) / 1e6,
            "share_of_an_epoch_of_10_minutes": median(seconds) / EPOCH_SECONDS,
        }
    return record


PARTS = {"step": steps, "processes": processes, "loading": loading, "checkpoint": checkpoints}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="threads of a process  [default: PyTorch's]")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--stem", default="imagenet")
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each candidate of `step` on a CPU")
    parser.add_argument("--run", choices=list(NETWORKS.values()), help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", help="a set of images with three channels, e.g. npz:PATH  [default: made JPEGs]")
    parser.add_argument("--disk", help="folder in which checkpoints are written  [default: the temporary one]")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.run:
        step = straightforward(arguments, arguments.run)
        print(median([timed(step) for _ in range(2 + arguments.repeats)][2:]))
        return
    record: dict[str, Any] = {
        "device": device_name(torch.device(arguments.device)),
        "vectors": library.vectors(),
        "versions": versions(),
        "options": {k: str(v) for k, v in vars(arguments).items() if k not in ("out", "data", "disk")},
    }
    if arguments.out.exists():
        record = {**json.loads(arguments.out.read_text()), **record}
    for part in arguments.only:
        record[part] = PARTS[part](arguments)
        print(part, record[part], flush=True)
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
