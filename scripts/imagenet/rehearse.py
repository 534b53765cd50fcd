"""Rehearse the pipeline of ImageNet on real 224-pixel pictures, on CPUs: every step, with tiny networks.

    python scripts/imagenet/rehearse.py PICTURES.npz --out FOLDER

The pictures become a folder of image files as ImageNet has them. An LR-Net and a ResNet train with two processes of
torchrun, are stopped by SIGTERM, and go on with one process; each is attacked in two shards, which are merged; the runs
are compared and reported; and Table 9 of ImageNet is made of a few pictures. The numbers mean nothing, that each step
works is the result. Steps and times are written to FOLDER/rehearsal.json, or to the file that --json names.

PICTURES.npz holds `images` [N, 224, 224, 3] uint8 with `labels`, or JPEG files one after the other in `jpg` with their
offsets `off` [N + 1] and labels `y`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NETWORKS = {"lrnet26": ["model.width=0.0625"], "resnet26": ["model.width=0.0625"]}


def pictures(file: Path) -> Iterator[tuple[bytes, int]]:
    """Yield image files with their labels."""
    with np.load(file, allow_pickle=False) as arrays:
        if "jpg" in arrays.files:
            blob, offsets, labels = arrays["jpg"], arrays["off"], arrays["y"]
            for start, end, label in zip(offsets[:-1], offsets[1:], labels, strict=True):
                yield blob[start:end].tobytes(), int(label)
            return
        for image, label in zip(arrays["images"], arrays["labels"], strict=True):
            content = BytesIO()
            Image.fromarray(image).save(content, format="JPEG", quality=95)
            yield content.getvalue(), int(label)


def write_folder(file: Path, folder: Path, count: int) -> int:
    """Write train/ and val/ with one folder for each class; both hold the same pictures."""
    chosen = [picture for _, picture in zip(range(count), pictures(file), strict=False)]
    for number, (content, label) in enumerate(chosen):
        for split in ("train", "val"):
            target = folder / split / f"n{label:08d}"
            target.mkdir(parents=True, exist_ok=True)
            (target / f"{number}.jpg").write_bytes(content)
    return len(chosen)


class Rehearsal:
    """Runs commands one after the other and remembers how long each took."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def run(self, what: str, words: Sequence[str], *, stop_at: Path | None = None, expect: int = 0) -> None:
        """Run a command; one that is to be stopped gets SIGTERM once the file ``stop_at`` has two lines."""
        print(f"{what}: {' '.join(words)}", flush=True)
        began = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        if stop_at is not None:
            while process.poll() is None and not (stop_at.exists() and stop_at.read_text().count("\n") >= 2):
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
        _, error = process.communicate()
        seconds = time.monotonic() - began
        self.steps.append({"step": what, "command": words, "exit_code": process.returncode, "seconds": seconds})
        if (process.returncode == 0) != (expect == 0) or (stop_at is not None and not stop_at.exists()):
            sys.exit(f"{what} ended with exit code {process.returncode}:\n{error[-3000:]}")


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]


def table_words(data: Path) -> list[str]:
    """Table 9 of ImageNet with tiny networks, 64 training and 8 test pictures, and no attacks beside the paper's."""
    train = ["epochs=1", "batch_size=8", "warmup_epochs=0", "milestones=[]", "device=cpu"]
    values = [
        *(f"{regime}.train.{value}" for regime in ("regular", "adversarial") for value in train),
        *("adversarial.attack.steps=1", "model.width=0.0625", "data.limit=64", "data.workers=0", f"data.root={data}"),
        *("stronger=[]", "claims=[]"),
    ]
    sets = [word for value in values for word in ("--set", value)]
    return ["table9", "--scale", "imagenet", "--limit", "8", *sets]


def plain(words: Sequence[str], data: Path, out: Path) -> str:
    """Join the words of a command, with the names of this machine's folders replaced."""
    text = " ".join(words).replace(str(data), "IMAGENET").replace(str(out), "FOLDER")
    return text.replace(sys.executable, "python")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="file for the steps and their times")
    arguments = parser.parse_args()
    out: Path = arguments.out
    data = out / "imagenet"
    if not data.exists():
        print(f"{write_folder(arguments.pictures, data, arguments.images)} pictures in {data}")
    rehearsal, program = Rehearsal(), ["-m", "robust_lr"]
    evaluations = []
    for network, options in NETWORKS.items():
        folder = out / network
        sets = [
            f"model.name={network}",
            *options,
            f"data.root={data}",
            "data.workers=0",
            "train.epochs=1",
            "train.batch_size=4",
            "train.warmup_epochs=0",
            "train.milestones=[]",
            "train.lr=0.01",
            "train.device=cpu",
            "attack.steps=1",
        ]
        words = [word for value in sets for word in ("--set", value)]
        train = [*program, "adv-train", "imagenet/lrnet26_adv", *words, "--out", str(folder)]
        rehearsal.run(
            f"{network}: train on 2 processes, stop",
            [*torchrun(2), *train],
            stop_at=folder / "metrics.jsonl",
            expect=143,
        )
        rehearsal.run(f"{network}: go on with 1 process", [sys.executable, *train, "--resume"])
        attack = [*program, "attack", "--checkpoint", str(folder), "--untargeted", "--set", "steps=2"]
        place = ["--root", str(data), "--limit", str(min(arguments.images, 64))]
        shards = [str(out / f"{network}-shard-{number}") for number in (1, 2)]
        for number, shard in enumerate(shards, start=1):
            rehearsal.run(
                f"{network}: attack shard {number} of 2",
                [sys.executable, *attack, *place, "--shard", f"{number}/2", "--out", shard],
            )
        merged = str(out / f"{network}-merged")
        rehearsal.run(f"{network}: merge", [sys.executable, *program, "merge", *shards, "--out", merged])
        evaluations.append(merged)
    comparison = str(out / "compare.json")
    rehearsal.run("compare", [sys.executable, *program, "compare", *evaluations, "--json", comparison])
    report = str(out / "report.html")
    rehearsal.run("report", [sys.executable, *program, "report", *evaluations, "--out", report])
    rehearsal.run("table", [sys.executable, *program, *table_words(data), "--out", str(out / "table9")])
    steps = [{**step, "command": plain(step["command"], data, out)} for step in rehearsal.steps]
    record = {"images": arguments.images, "steps": steps}
    (arguments.json or out / "rehearsal.json").write_text(json.dumps(record, indent=2) + "\n")
    for step in rehearsal.steps:
        print(f"{step['seconds']:6.1f} s  {step['step']}")


if __name__ == "__main__":
    main()
