"""The convolutions of an attack on ResNet-26 and LR-Net-26 on a CPU: our kernels against PyTorch's, layer by layer.

    python benchmarks/convolutions.py --out FILE
    python benchmarks/convolutions.py --out FILE --size 28 --channels 1 --width 0.25 --batch 64

The second is the size of the main job. Every convolution of the folded networks runs on the shape that it has there, in
the network's memory format: the pass forward, and the gradient by the input, which is all that an attack needs, with
the ReLU where one follows; sums with shortcuts are left out. LR-Net's stem is another operator, see networks.py. Ours
and PyTorch's take turns. The JSON has medians of seconds by layer, and the ratio PyTorch / ours of the sums.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from local_relation import Run, measure
from torch import Tensor, nn

from robust_lr import build_model
from robust_lr.models.folded_block import FoldedBlock
from robust_lr.models.folding import fold
from robust_lr.models.layers.fused_conv import FusedConv2d
from robust_lr.models.layers.image_conv import ImageConv2d
from robust_lr.models.lr_net_stem import LRNet
from robust_lr.models.resnet import ResNet
from robust_lr.ops import doctor
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions

NETWORKS = {"LR-Net-26": "lrnet26", "ResNet-26": "resnet26"}
PASSES = ("forward", "gradient")


def layers(network: ResNet, image: Tensor) -> dict[str, tuple[nn.Conv2d, Tensor]]:
    """The convolutions that have a kernel of ours, with what they are given."""
    found = {}

    def note(name: str, conv: nn.Conv2d, given: tuple[Tensor, ...]) -> None:
        found[name] = conv, given[0].detach()

    def noted(name: str, conv: FusedConv2d, forked: Callable[[Tensor], Any], x: Tensor) -> Any:
        note(name, conv, (x,))
        return forked(x)

    stem = network.stem_names if isinstance(network, LRNet) else ()
    for name, module in network.named_modules():
        if isinstance(module, FusedConv2d | ImageConv2d) and name.split(".")[0] not in stem:
            module.register_forward_pre_hook(partial(note, name))
            if isinstance(module, FusedConv2d):  # folded layers also call this, past the hooks
                module.forked = partial(noted, name, module, module.forked)  # type: ignore[method-assign]
    for module in network.modules():
        if isinstance(module, FoldedBlock):
            module.__dict__["is_one_node"] = False  # layer by layer, so that each is seen
    network(image)
    for module in network.modules():
        if isinstance(module, FoldedBlock):
            del module.__dict__["is_one_node"]
    for module, _ in found.values():
        vars(module).pop("forked", None)
    return found


def gradient(conv: nn.Module, x: Tensor) -> Run:
    """The pass back alone."""
    x = x.detach().requires_grad_()
    y = conv(x)
    dy = torch.randn_like(y)
    return partial(torch.autograd.grad, y, x, dy, retain_graph=True)


def forward(conv: nn.Module, x: Tensor) -> Run:
    def run() -> None:
        with torch.no_grad():
            conv(x)

    return run


def plain(conv: nn.Conv2d) -> nn.Module:
    """The same of PyTorch's own."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
    sizes: Any = {name: getattr(conv, name) for name in names}
    made = nn.Conv2d(**sizes, bias=conv.bias is not None)
    made.load_state_dict(conv.state_dict())
    made.to(memory_format=torch.channels_last).requires_grad_(False)
    return nn.Sequential(made, nn.ReLU(inplace=True)) if isinstance(conv, FusedConv2d) and conv.relu else made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks = {}
    for title, name in NETWORKS.items():
        torch.manual_seed(0)
        model = build_model(name, width=options.width, in_channels=options.channels)
        image = torch.rand(options.batch, options.channels, options.size, options.size)
        seconds = {}
        for layer, (conv, x) in layers(fold(model), image).items():
            runs = {
                f"{which} {whose}": make(kind, x)
                for which, make in {"forward": forward, "gradient": gradient}.items()
                for whose, kind in {"ours": conv, "PyTorch": plain(conv)}.items()
            }
            seconds[layer] = measure(runs, options.repeats)
        total = {key: sum(times[key] for times in seconds.values()) for key in next(iter(seconds.values()))}
        ratios = {which: total[f"{which} PyTorch"] / total[f"{which} ours"] for which in PASSES}
        print(title, {key: round(value, 2) for key, value in ratios.items()})
        networks[title] = {"PyTorch / ours": ratios, "seconds": total, "layers": seconds}
    record = {
        "device": device_name(torch.device("cpu")),
        "kernels": {k: v for k, v in doctor.describe().items() if k in ("compiler_version", "vectors", "uses")},
        "versions": versions(),
        "settings": {key: value for key, value in vars(options).items() if key != "out"},
        "networks": networks,
    }
    write_json(options.out, record)


if __name__ == "__main__":
    main()
