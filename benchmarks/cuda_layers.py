"""Times the local relation of LR-Net-26's nine layers on a GPU, against ResNet-26's convolutions and the memory floor.

    python benchmarks/cuda_layers.py --out benchmarks/results/cuda_layers.json

The floor of a pass is what it must read and write once, at the bandwidth that copying a large tensor reaches on the
same GPU.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_lr.ops import local_relation as ops
from robust_lr.utils.files import write_json
from robust_lr.utils.provenance import device_name, versions


@dataclass(frozen=True)
class Layer:
    """A local relation layer, and the convolution of ResNet-26 in its place."""

    name: str
    size: int  # of the input image
    stride: int
    channels: int
    conv_channels: tuple[int, int]
    conv_kernel: int


LAYERS = [
    Layer("stem", 224, 2, 64, (3, 64), 7),
    Layer("res2.0", 56, 1, 100, (64, 64), 3),
    Layer("res2.1", 56, 1, 100, (64, 64), 3),
    Layer("res3.0", 56, 2, 200, (128, 128), 3),
    Layer("res3.1", 28, 1, 200, (128, 128), 3),
    Layer("res4.0", 28, 2, 400, (256, 256), 3),
    Layer("res4.1", 14, 1, 400, (256, 256), 3),
    Layer("res5.0", 14, 2, 800, (512, 512), 3),
    Layer("res5.1", 7, 1, 800, (512, 512), 3),
]


def milliseconds(call: Callable[[], object], repeats: int = 30) -> float:
    """The median time of a call, by the GPU's own clock."""
    for _ in range(5):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def forward_and_backward(operator: Callable[[], Tensor], leaves: list[Tensor]) -> tuple[float, float]:
    """Milliseconds of an operator and of its gradients."""
    with torch.no_grad():
        forward = milliseconds(operator)
    y = operator()
    dy = torch.randn_like(y)
    return forward, milliseconds(lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True))


def measure(
    layer: Layer, batch: int, dtype: torch.dtype, layout: torch.memory_format, gb_s: float
) -> dict[str, object]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout).requires_grad_()

    groups, out = -(-layer.channels // 8), layer.size // layer.stride
    x = normal(batch, layer.channels, layer.size, layer.size)
    q, k = normal(batch, groups, out, out), normal(batch, groups, layer.size, layer.size)
    geo = torch.randn(groups, 7, 7, device="cuda", requires_grad=True)
    relate = lambda: ops.local_relation(x, q, k, geo, stride=layer.stride)  # noqa: E731
    forward, backward = forward_and_backward(relate, [x, q, k, geo])
    _, attack = forward_and_backward(relate, [x, q, k])

    image = normal(batch, layer.conv_channels[0], layer.size, layer.size)
    weight = normal(*reversed(layer.conv_channels), layer.conv_kernel, layer.conv_kernel)
    convolve = lambda: F.conv2d(image, weight, stride=layer.stride, padding=layer.conv_kernel // 2)  # noqa: E731
    conv_forward, conv_backward = forward_and_backward(convolve, [image, weight])

    y = batch * layer.channels * out**2
    lse = 4 * q.numel()
    inputs = (x.numel() + q.numel() + k.numel()) * x.element_size()
    return {
        "layer": layer.name,
        "forward_ms": forward,
        "backward_ms": backward,
        "backward_without_prior_ms": attack,
        "forward_floor_ms": (inputs + y * x.element_size() + lse) / gb_s / 1e6,
        "backward_floor_ms": (2 * inputs + 2 * y * x.element_size() + lse) / gb_s / 1e6,
        "conv_forward_ms": conv_forward,
        "conv_backward_ms": conv_backward,
    }


def bandwidth() -> float:
    """GB/s that a copy of 1 GiB reaches, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cuda_layers.json"))
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    gb_s = bandwidth()
    result: dict[str, object] = {
        "device": device_name(torch.device("cuda")),
        "versions": versions(),
        "batch": arguments.batch,
        "copy_gb_s": gb_s,
    }
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for layout in (torch.channels_last, torch.contiguous_format):
            rows = [measure(layer, arguments.batch, dtype, layout, gb_s) for layer in LAYERS]
            total = {key: sum(float(str(row[key])) for row in rows) for key in rows[0] if key != "layer"}
            ratios = {
                "forward_to_floor": total["forward_ms"] / total["forward_floor_ms"],
                "backward_to_floor": total["backward_ms"] / total["backward_floor_ms"],
                "forward_to_conv": total["forward_ms"] / total["conv_forward_ms"],
                "backward_to_conv": total["backward_ms"] / total["conv_backward_ms"],
            }
            name = f"{dtype} {layout}".replace("torch.", "")
            result[name] = {"total": total, "ratios": ratios, "layers": rows}
            print(name, {key: round(value, 2) for key, value in ratios.items()})
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
