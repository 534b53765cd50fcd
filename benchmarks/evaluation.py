"""PGD of this package and of its peers: the same network, images and steps, each program in a process of its own.

    python benchmarks/evaluation.py --out FILE [--resnet RUN] [--images N] [--rounds N] [--only NAME ...] [--long N]

Each run is a new process with the defaults of its library and no environment variable set for it; programs take turns.
Seconds are those of the evaluation alone, without imports and loading. A peer predicts the clean images, attacks them
64 at a time from the clean start, and predicts again. Ours is `evaluate` under the last iterate (`last`) and under the
worst seen (`worst`), with guards, hashes, ledger and result, which no peer has; `probed` is the default, where probes
judge the number as well. `same_verdicts_as_last` counts images. `overhead` has the shares of guards, probes, hashes and
ledger in one evaluation; of the ledger that is processor time, since it waits for the disk while images are attacked.
With `--long N`, 1,000 steps on N images as well.

Without --resnet, a ResNet-26 is trained first as the shipped LR-Net-26 was. A file that exists is added to, so that
parts (`--only`, by network and eps, e.g. "LR-Net-26 16") can be measured one by one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from own_process import POLICY, run_script

BATCH = 64
LONG_STEPS = 1000
NETWORKS = ("LR-Net-26", "ResNet-26")

#: name of a peer -> name of its distribution; peers that are not installed are left out
PEERS = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "adversarial-library": "adv-lib",
    "cleverhans": "cleverhans",
}
#: name of our program -> criterion of the protocol, and argument ``check`` of ``evaluate``
OURS = {
    "last": ("last", "off"),
    "worst": ("worst", "off"),
    "last, probed": ("last", "default"),
    "worst, probed": ("worst", "default"),
}

Attack = Callable[[Any, Any], Any]


def peer(name: str, model: Any, eps: float, step_size: float, steps: int) -> Attack:
    """Return a peer's PGD, a function from images and labels to adversarial images."""
    if name == "torchattacks":
        import torchattacks

        return torchattacks.PGD(model, eps=eps, alpha=step_size, steps=steps, random_start=False)  # type: ignore[no-any-return]
    if name == "foolbox":
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
            abs_stepsize=step_size, steps=steps, random_start=False
        )
        return lambda x, y: attack(wrapped, x, y, epsilons=eps)[1]
    if name == "adversarial-library":
        from adv_lib.attacks import pgd_linf

        return lambda x, y: pgd_linf(model, x, y, eps, steps=steps, random_init=False, absolute_step_size=step_size)
    import numpy as np
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    return lambda x, y: projected_gradient_descent(model, x, eps, step_size, steps, np.inf, y=y, rand_init=False)


def run_peer(name: str, model: Any, data: Any, eps: float, step_size: float, steps: int) -> tuple[float, list[bool]]:
    """Return the seconds of a peer's evaluation, and for each image whether its last iterate is classified right."""
    import torch

    model.eval()
    attack = peer(name, model, eps, step_size, steps)
    held: list[bool] = []
    began = time.perf_counter()
    for rows in torch.arange(len(data)).split(BATCH):
        x, y, _ = data.batch(rows)
        with torch.no_grad():
            model(x).argmax(1)
        x_adv = attack(x, y)
        with torch.no_grad():
            held += (model(x_adv).argmax(1) == y).tolist()
    return time.perf_counter() - began, held


def run_ours(program: str, model: Any, data: Any, eps: float, step_size: float, steps: int) -> dict[str, Any]:
    """Return the seconds of our evaluation, the verdicts in the order of the data, and the share of each overhead."""
    import robust_lr as rlr
    from robust_lr.evaluation.harness import evaluate
    from robust_lr.results.ledger import read

    criterion, check = OURS[program]
    protocol = rlr.protocols.PGD(eps=eps, step_size=step_size, steps=steps, start="clean", criterion=criterion)
    spent: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        with clocks(spent):
            began = time.perf_counter()
            evaluate(model, data, protocol, out=folder, check=check)
            seconds = time.perf_counter() - began
        rows = {row.id: row.robust for row in read(Path(folder) / "ledger.sqlite")}
    return {
        "seconds": seconds,
        "held": [rows[id_] for id_ in data.ids.tolist()],
        "overhead": {name: sum(times) / seconds for name, times in spent.items()},
    }


#: name of an overhead -> the functions that cause it
CLOCKED = {
    "guards": ("evaluation.session.run_guards", "evaluation.session.run_guards_of_gradients"),
    "probes": ("evaluation.harness.probe",),
    "hashes": ("evaluation.session.content_hash", "evaluation.session.weights_hash"),
    "ledger": ("results.ledger.Ledger.__init__", "results.ledger.Ledger.add", "results.ledger.Ledger.rows"),
}


@contextmanager
def clocks(spent: dict[str, list[float]]) -> Iterator[None]:
    """Add the time that each call of a function of ``CLOCKED`` takes to ``spent``."""
    with ExitStack() as stack:
        for name, paths in CLOCKED.items():
            spent[name] = []
            for path in paths:
                stack.enter_context(clocked(path, spent[name]))
        yield


@contextmanager
def clocked(path: str, spent: list[float]) -> Iterator[None]:
    clock = time.thread_time if "ledger" in path else time.perf_counter
    room, module, *owners, name = path.split(".")
    owner: Any = importlib.import_module(f"robust_lr.{room}.{module}")
    for part in owners:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        began = clock()
        try:
            return function(*arguments, **options)
        finally:
            spent.append(clock() - began)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, function)


def run(program: str, network: str, images: int, eps: float, step_size: float, steps: int) -> None:
    """Do one run, in a process of its own, and print the outcome as JSON."""
    import torch

    import robust_lr as rlr
    from robust_lr.data.dataset import spread

    model = rlr.load_model(network or None)
    data = spread(rlr.data.load("fashion-mnist-mini", "test"), images)
    with torch.no_grad():
        model.eval()(data.batch(torch.arange(2))[0])  # kernels are compiled before the clock starts
    if program in OURS:
        found = run_ours(program, model, data, eps, step_size, steps)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds, held = run_peer(program, model, data, eps, step_size, steps)
        found = {"seconds": seconds, "held": held}
    policy = {name: os.environ.get(name) for name in POLICY}
    print(json.dumps({**found, "threads": torch.get_num_threads(), "policy": policy}))


def compare(network: str, programs: dict[str, int], images: int, eps: float, steps: int) -> dict[str, Any]:
    """Run each program as often as ``programs`` says, in turns, and compare seconds and verdicts."""
    step_size = eps / 8 if steps < LONG_STEPS else eps / 16
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    failed: dict[str, str] = {}
    for turn in range(max(programs.values())):
        for name, rounds in programs.items():
            if turn >= rounds or name in failed:
                continue
            try:
                found[name].append(run_script(__file__, name, network, images, eps / 255, step_size / 255, steps))
            except RuntimeError as error:
                if name in (*OURS, "torchattacks"):
                    raise
                failed[name] = str(error).splitlines()[-1]
    found = {name: runs for name, runs in found.items() if runs}
    medians = {name: statistics.median(run["seconds"] for run in runs) for name, runs in found.items()}
    held = {name: runs[0]["held"] for name, runs in found.items()}
    return {
        "eps": f"{eps:g}/255",
        "step_size": f"{step_size:g}/255",
        "steps": steps,
        "images": images,
        "failed": failed,
        "seconds": medians,
        "all_seconds": {name: [run["seconds"] for run in runs] for name, runs in found.items()},
        "torchattacks_over": {name: medians["torchattacks"] / seconds for name, seconds in medians.items()},
        "accuracy": {name: sum(right) / images for name, right in held.items()},
        "same_verdicts_as_last": {
            name: sum(a == b for a, b in zip(right, held["last"], strict=True))
            for name, right in held.items()
            if not name.startswith("worst")
        },
        "overhead": {name: found[name][0]["overhead"] for name in OURS if name in found},
        "threads": {name: runs[0]["threads"] for name, runs in found.items()},
        "policy": {name: runs[0]["policy"] for name, runs in found.items()},
    }


def installed() -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {}
    for name, distribution in PEERS.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def train_resnet(folder: Path) -> Path:
    """ResNet-26 trained as the shipped LR-Net-26 was."""
    import robust_lr as rlr

    config = rlr.config.load("lrnet26_fashion_mnist_mini", ["model.name=resnet26"])
    for _ in rlr.train_run(config, folder):
        pass
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resnet", type=Path, help="run folder of a trained ResNet-26; by default one is trained")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eps", type=float, nargs="+", default=[16.0, 32.0], help="of PGD, in 255ths")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--long", type=int, default=0, metavar="N", help=f"{LONG_STEPS} steps on N images")
    parser.add_argument("--only", nargs="+", help="parts, e.g. 'LR-Net-26 16'; the long ones end in 'long'")
    options = parser.parse_args()
    if options.run:
        program, network, images, eps, step_size, steps = options.run
        run(program, network, int(images), float(eps), float(step_size), int(steps))
        return
    if options.out is None:
        parser.error("--out FILE is needed")
    import torch

    from robust_lr.ops import library
    from robust_lr.utils.files import write_json
    from robust_lr.utils.provenance import device_name, versions

    peers = installed()
    if "torchattacks" not in peers:
        parser.error("torchattacks is not installed")
    record: dict[str, Any] = {
        "device": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "vectors": library.vectors(),
        "versions": {**versions(), **peers},
        "parts": json.loads(options.out.read_text())["parts"] if options.out.exists() else {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for network in NETWORKS:
            parts = {f"{network} {eps:g}": (eps, options.images, options.steps) for eps in options.eps}
            if options.long:
                parts[f"{network} long"] = (options.eps[0], options.long, LONG_STEPS)
            for part, (eps, images, steps) in parts.items():
                if options.only and part not in options.only:
                    continue
                source = ""
                if network != NETWORKS[0]:
                    source = str(options.resnet or train_resnet(Path(scratch) / "resnet26"))
                    options.resnet = Path(source)
                first = eps == options.eps[0] and steps < LONG_STEPS
                programs = {
                    "torchattacks": 1 if steps >= LONG_STEPS else options.rounds,
                    **dict.fromkeys(OURS, options.rounds),
                    **{name: 1 for name in peers if first and name != "torchattacks"},
                }
                record["parts"][part] = compare(source, programs, images, eps, steps)
                print(part, record["parts"][part]["torchattacks_over"], record["parts"][part]["overhead"], flush=True)
                write_json(options.out, record)


if __name__ == "__main__":
    main()
