"""Broken defenses, their honest twins and honest networks under a default evaluation: reported, bound, true, verdict.

    python benchmarks/zoo.py [--images 200] [--only NAME ...] [--twins] [--out FILE]

The zoo is in tests/zoo: one page for each kind of broken defense, with an honest twin and a surrogate through which
adaptive attacks find its true robust accuracy; and honest networks of many kinds. What is in FILE already is not run
again. `make zoo` runs all of it and writes the table of docs/validity.md's zoo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from zoo import BROKEN, networks  # noqa: E402
from zoo.honest import HONEST  # noqa: E402
from zoo.truth import surviving  # noqa: E402

import robust_lr as rlr  # noqa: E402
from robust_lr.data.dataset import evenly_spaced  # noqa: E402
from robust_lr.utils.errors import InputError, RunError  # noqa: E402
from robust_lr.utils.files import write_json  # noqa: E402
from robust_lr.utils.provenance import device_name, origin, versions  # noqa: E402

PROTOCOL = "lrnet-untargeted"

#: kinds whose answers depend on chance or on what was asked before, so that no attack finds their true accuracy
NO_TRUTH = ("random", "shared")

#: points by which a number is too high for its model to count as inflated
INFLATED = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--twins", action="store_true", help="the twins as well")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/zoo.json")
    parser.add_argument("--table", type=Path, default=ROOT / "docs/zoo.md")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks.folder = ROOT / "build/zoo"
    data = rlr.data.load("fashion-mnist-mini", "test")
    data = data.subset(evenly_spaced(len(data), options.images))
    record: dict[str, Any] = {"images": options.images, "protocol": PROTOCOL, "models": []}
    if options.out.is_file():
        kept = json.loads(options.out.read_text())
        record = kept if kept["images"] == options.images else record
    done = {(entry["kind"], entry["name"]) for entry in record["models"]}
    for kind, name, make, truth in models(options.twins):
        if (kind, name) in done or (options.only and name not in options.only):
            continue
        entry = {"kind": kind, "name": name, "commit": origin().get("commit"), **evaluated(make, data)}
        if truth is not None:
            x, labels, _ = data.batch(torch.arange(len(data)))
            entry["true"] = float(surviving(make(), truth(), x, labels).float().mean())
        record["models"].append(entry)
        print(line(entry), flush=True)
        record.update({"device": device_name(torch.device("cpu")), "versions": versions(), **origin()})
        record["summary"] = summary(record["models"])
        write_json(options.out, record)
    print(json.dumps(record.get("summary"), indent=2))
    options.table.write_text(page(record), encoding="utf-8")


def models(twins: bool) -> Iterator[tuple[str, str, Callable[[], Any], Callable[[], Any] | None]]:
    """Kind, name, how to make it, and a surrogate where the true robust accuracy is looked for."""
    for name, zoo_page in BROKEN.items():
        yield (
            "broken",
            name.replace("_", " "),
            zoo_page.broken,
            None if name.startswith(NO_TRUTH) else zoo_page.surrogate,
        )
    for name, make in HONEST.items():
        yield "honest", name, make, None
    if twins:
        for name, zoo_page in BROKEN.items():
            yield "twin", name.replace("_", " "), zoo_page.twin, None


def evaluated(make: Callable[[], Any], data: Any) -> dict[str, Any]:
    """Evaluate with the defaults; return the verdict and the processor time of the probes."""
    try:
        began = time.process_time()
        rlr.evaluate(make(), data, PROTOCOL, check="off")
        plain, began = time.process_time() - began, time.process_time()
        result = rlr.evaluate(make(), data, PROTOCOL)
        both = time.process_time() - began
    except (InputError, RunError) as error:
        return {"verdict": "refused", "reason": str(error)}
    keys = ("verdict", "inflation", "bound", "verdict_reason", "robust_accuracy", "clean_accuracy", "validity")
    found = result.to_dict()
    return {**{key: found[key] for key in keys}, "seconds_of_probes": both - plain, "seconds_without": plain}


def summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The bars: inflated ones that are flagged, honest ones that are not, and how far bounds are from the truth."""
    inflated = [
        e for e in entries
        if e["kind"] == "broken" and (e["verdict"] == "refused" or points(e) >= INFLATED)
    ]  # fmt: skip
    flagged = [e for e in inflated if e["verdict"] in ("refused", "weak", "misled")]
    apart = [100 * abs(e["bound"] - e["true"]) for e in flagged if e.get("bound") is not None and "true" in e]
    honest = [e for e in entries if e["kind"] != "broken"]
    alarms = [e["name"] for e in honest if e["verdict"] in ("refused", "misled", None)]
    probes = [e["seconds_of_probes"] for e in entries if "seconds_of_probes" in e]
    return {
        "inflated": len(inflated),
        "flagged": len(flagged),
        "not_flagged": [e["name"] for e in inflated if e not in flagged],
        "honest": len(honest),
        "false_alarms": alarms,
        "bound_apart_median": statistics.median(apart) if apart else None,
        "seconds_of_probes_median": statistics.median(probes) if probes else None,
        "seconds_of_probes_max": max(probes, default=None),
    }


def points(entry: dict[str, Any]) -> float:
    """By how many points a number is too high."""
    return 100 * float(entry["robust_accuracy"] - entry.get("true", 0.0))


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def line(entry: dict[str, Any]) -> str:
    numbers = (percent(entry.get(key)) for key in ("robust_accuracy", "bound", "true"))
    return " | ".join(
        [f"{entry['kind']:6}", f"{entry['name']:28}", *(f"{n:>5}" for n in numbers), str(entry["verdict"])]
    )


def page(record: dict[str, Any]) -> str:
    """The table for the docs."""
    head = f"""# The zoo

Broken defenses and honest networks on {record["images"]} test images of the embedded data under `{PROTOCOL}`, evaluated
with default probes: `make zoo` (JSON: `benchmarks/results/zoo.json`). True robust accuracy is the lowest that adaptive
attacks through each defense's surrogate reach (`tests/zoo/truth.py`). What each kind does: its page in
`tests/zoo/broken/`. In %.

| kind | model | reported | bound | true | verdict |
|---|---|---|---|---|---|
"""
    rows = "".join(
        f"| {e['kind']} | {e['name']} | {percent(e.get('robust_accuracy'))} | {percent(e.get('bound'))} | "
        f"{percent(e.get('true'))} | {e['verdict']} |\n"
        for e in record["models"]
    )
    return head + rows


if __name__ == "__main__":
    main()
