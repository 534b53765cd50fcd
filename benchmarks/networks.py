"""LR-Net-26 against ResNet-26 as whole networks: what attacks and training cost, in time and in memory.

    python benchmarks/networks.py --out FILE [--device cuda] [--batch N]
    python benchmarks/networks.py --out FILE --config configs/table9.toml --size 28 --channels 1 --batch 64

The second takes the networks of an experiment's rows "LR-Net-26" and "ResNet-26", here those of the main job.
`forward` and `attack` (forward with the gradient by the image) are in eval mode, of the network as it is; `folded` are
the same with batch norm in the weights and the prior a constant, which is what our attacks run on; `training` is a step
of SGD with momentum. Networks, passes and memory formats take turns, so that a machine whose speed drifts treats them
alike. The JSON has medians of seconds, and ratios with each network in its better memory format.

Memory is the most that one training step holds, with weights and momentum: on a GPU by PyTorch's allocator, on a CPU by
the allocations that PyTorch's profiler reports. Precision is float32, on a GPU bfloat16 by autocast, too.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from local_relation import FORMATS, measure
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from robust_lr import build_model
from robust_lr.models.folding import fold, in_bfloat16
from robust_lr.models.lr_net_stem import LRNet
from robust_lr.models.resnet import STEMS, ResNet
from robust_lr.ops import doctor
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

NETWORKS = {"LR-Net-26": "lrnet26", "ResNet-26": "resnet26"}
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}
PASSES = ("forward", "attack", "folded forward", "folded attack", "training")

Run = Callable[[], object]


class InFormat(nn.Module):
    """Normalization that returns a given memory format; our networks' own is channels-last."""

    def __init__(self, normalize: nn.Module, layout: torch.memory_format):
        super().__init__()
        self.normalize, self.layout = normalize, layout

    def forward(self, x: Tensor) -> Tensor:
        pixels: Tensor = self.normalize(x)
        return pixels.contiguous(memory_format=self.layout)


def make_network(name: str, options: argparse.Namespace) -> ResNet:
    """Return the named network with random weights, built from its row in `--config` or from the options."""
    if options.config is None:
        model = build_model(NETWORKS[name], width=options.width, stem=options.stem, in_channels=options.channels)
    else:
        config = tomllib.loads(options.config.read_text())
        (row,) = (row["model"] for row in config["rows"] if row["label"] == name)
        model = build_model(in_channels=options.channels, **config["model"] | row)
    assert isinstance(model, ResNet)
    return model


def in_format(model: ResNet, layout: torch.memory_format, options: argparse.Namespace) -> nn.Module:
    model = copy.deepcopy(model)
    if options.stepwise_stem and isinstance(model, LRNet):
        model.get_submodule("relu1").register_forward_hook(lambda *_: None)  # a hook rules out the fused stem
    model.set_submodule("normalize", InFormat(model.normalize, layout))
    return model.to(device=options.device, memory_format=layout)


def passes(name: str, layout: torch.memory_format, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Run]:
    """A network's passes in one memory format and precision."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = make_network(name, options)
    x = torch.rand(options.batch, options.channels, options.size, options.size, device=device)
    labels = torch.randint(1000, (options.batch,), device=device)
    autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

    def forward(network: nn.Module) -> None:
        with torch.no_grad(), autocast():
            network(x)

    def attack(network: nn.Module) -> None:
        image = x.detach().requires_grad_()
        with autocast():
            loss = F.cross_entropy(network(image), labels)
        torch.autograd.grad(loss, image)

    trained = in_format(model, layout, options).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.01, momentum=0.9)

    def training() -> None:
        optimizer.zero_grad()
        with autocast():
            loss = F.cross_entropy(trained(x), labels)
        loss.backward()
        optimizer.step()

    plain = in_format(model, layout, options).eval().requires_grad_(False)
    folded = in_format(fold(model), layout, options)
    lowered = in_bfloat16(folded) if dtype == torch.float32 else None
    return {
        "forward": partial(forward, plain),
        "attack": partial(attack, plain),
        "folded forward": partial(forward, folded),
        "folded attack": partial(attack, folded),
        **({"folded attack in bf16": partial(attack, lowered)} if lowered is not None else {}),
        "training": training,
    }


def synchronized(run: Run) -> Run:
    def wait() -> None:
        run()
        torch.cuda.synchronize()

    return wait


def best_format(seconds: dict[str, float], name: str, which: str) -> str:
    return min(FORMATS, key=lambda layout: seconds[f"{name} {which} {layout}"])


def training_bytes(name: str, layout: torch.memory_format, dtype: torch.dtype, options: argparse.Namespace) -> int:
    """The peak memory of a training step in bytes, including weights and momentum."""
    step = passes(name, layout, dtype, options)["training"]
    step()  # allocates the momentum
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    allocated = [int(event["args"]["Total Allocated"]) for event in events if event["name"] == "[memory]"]
    weights = make_network(name, options)
    # The profiler counts what is allocated after its start: the gradients, but not the weights and their momentum.
    return max(allocated) + 2 * sum(p.nbytes for p in weights.parameters())


def operator_seconds(run: Run, device: str) -> dict[str, float]:
    """Seconds of a run in our operators and in the costliest others on a CPU, without the operators that they call, or
    in its costliest kernels on a GPU."""
    run()
    activity, time = (
        (ProfilerActivity.CUDA, "self_device_time_total")
        if device == "cuda"
        else (ProfilerActivity.CPU, "self_cpu_time_total")
    )
    with profile(activities=[activity]) as profiled:
        run()
    found = {event.key: getattr(event, time) / 1e6 for event in profiled.key_averages()}
    ordered = sorted(found, key=lambda name: -found[name])
    costliest = set(ordered[: 20 if device == "cuda" else 10])
    return {name: found[name] for name in ordered if name in costliest or name.startswith("robust_lr::")}


def settings(options: argparse.Namespace) -> dict[str, object]:
    """Return the options that had an effect, as values that JSON can hold."""
    unused = {"out", *(("width", "stem") if options.config else ("config",))}
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in unused
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--stem", choices=STEMS, default="imagenet")
    parser.add_argument("--config", type=Path, help="networks of this experiment, instead of --width and --stem")
    parser.add_argument(
        "--stepwise-stem", action="store_true", help="LR-Net's stem layer by layer, not as one operator"
    )
    parser.add_argument("--batch", type=int, help="8 on a CPU, 64 on a GPU by default")
    parser.add_argument("--repeats", type=int, help="5 on a CPU, 20 on a GPU by default")
    options = parser.parse_args()
    options.batch = options.batch or (64 if options.device == "cuda" else 8)
    options.repeats = options.repeats or (20 if options.device == "cuda" else 5)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)

    precisions = {}
    for dtype in DTYPES[options.device]:
        runs = {
            f"{name} {which} {layout}": run if options.device == "cpu" else synchronized(run)
            for name in NETWORKS
            for layout in FORMATS
            for which, run in passes(name, FORMATS[layout], dtype, options).items()
        }
        seconds = measure(runs, options.repeats)
        spent = {
            f"{which.replace(' ', '_')}_operator_seconds": {
                name: operator_seconds(runs[f"{name} {which} {best_format(seconds, name, which)}"], options.device)
                for name in NETWORKS
            }
            for which in ("folded attack", "training")
        }
        del runs  # memory is measured with one network at a time
        memory = {
            name: training_bytes(name, FORMATS[best_format(seconds, name, "training")], dtype, options)
            for name in NETWORKS
        }

        def best(name: str, which: str, seconds: dict[str, float] = seconds) -> float:
            return seconds[f"{name} {which} {best_format(seconds, name, which)}"]

        ratios = {which: best("LR-Net-26", which) / best("ResNet-26", which) for which in PASSES}
        ratios["training memory"] = memory["LR-Net-26"] / memory["ResNet-26"]
        lowered = "folded attack in bf16"
        if f"LR-Net-26 {lowered} nchw" in seconds:
            spent["folded attack, fp32 / bf16"] = {
                name: best(name, "folded attack") / best(name, lowered) for name in NETWORKS
            }
        precisions[str(dtype).removeprefix("torch.")] = {
            "LR-Net-26 / ResNet-26": ratios,
            "seconds": seconds,
            "training_bytes": memory,
            **spent,
        }
    record = {
        "device": device_name(device),
        "kernels": {k: v for k, v in doctor.describe().items() if k in ("compiler_version", "vectors", "uses")},
        "versions": versions(),
        "settings": settings(options),
        **precisions,
    }
    write_json(options.out, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
