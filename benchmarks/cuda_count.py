"""Counts the instructions that LR-Net-26's CUDA kernels issue, from their machine code: no GPU is needed.

    python benchmarks/cuda_count.py --out benchmarks/results/cuda-count-after.json

nvcc compiles the kernels for sm_90, nvdisasm takes them apart, and a program that only prints them
(benchmarks/cuda_count/launches.cpp) tells the launches of the nine layers. The instructions that a warp issues are the
lengths of a kernel's loops times how often they run, which `trips` knows from the launch, plus what lies outside of
loops. A warp that issues them all takes one slot each; an H100 has 132 multiprocessors x 4 slots x 1.755 GHz.

So the times are those of a GPU whose every slot is taken: they say where instructions go. Memory,
latencies and bank conflicts are not in it. Beside them stand the time of the exponentials (a warp's takes 8 cycles of
its quarter's unit) and the floor of memory at 3.35 TB/s.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from sass import Code, kernels, operation

from robust_lr.ops import nvcc
from robust_lr.utils.files import write_json

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "benchmarks" / "cuda_count"

SLOTS_PER_MS = 132 * 4 * 1.755e6
SPECIAL_CYCLES = 8  # for a warp's exponential: a quarter of a multiprocessor computes 4 lanes per cycle
BYTES_PER_MS = 3.35e9

PASSES = ("forward", "attack", "training")

SIZES = {"stem": 224, "res2": 56, "res3": 28, "res4": 14, "res5": 7}


@dataclass(frozen=True)
class Launch:
    """A kernel's launch; sizes that a kind of kernel does not have are 0."""

    layer: str
    part: str  # the pass that it is part of, one of PASSES
    kernel: str
    blocks: int
    threads: int
    shared: int
    stride: int
    channels: int
    groups: int = 0
    columns: int = 0
    strips: int = 0
    runs: int = 0
    strip: int = 0
    rounds: int = 0
    height: int = 0
    out_height: int = 0
    dgeo: int = 0
    rows: int = 0
    pixels: int = 0

    @property
    def name(self) -> str:
        """The kernel's name without its template arguments."""
        return next(name for name in KERNELS if f"{len(name)}{name}I" in self.kernel)

    @property
    def passes(self) -> int:
        """Number of rounds in which the threads load all runs of the tile."""
        return math.ceil(self.runs / (self.threads // self.groups))


KERNELS = (
    "forward_strips", "backward_queries", "backward_keys", "project", "image_gradient", "weights_gradient",
    "project_products", "image_gradient_products", "weights_gradient_products",
)  # fmt: skip


def trips(launch: Launch, loop: Counter[str]) -> float:
    """Return the number of times that a warp runs through a loop, which is recognized by its instructions.

    The result is 0 for what never happens here: other layouts and alignments, stems of other images, and outputs that
    must be computed again.
    """
    if launch.groups:
        return strip_trips(launch, loop)
    if launch.name.endswith("_products"):
        return product_trips(launch, loop)
    usual = {"project": 44, "image_gradient": 56, "weights_gradient": 44}[launch.name]  # for a stem of three inputs
    if loop["BAR"]:
        if launch.name == "weights_gradient":
            return launch.pixels / math.ceil(launch.pixels / 2048) / 128
        return float(loop["FFMA"] != usual + 4 * (1 + (launch.name == "image_gradient")))
    if loop["FFMA"]:
        return float(loop["FFMA"] == usual) * (32 if launch.name == "weights_gradient" else launch.channels)
    if launch.name == "weights_gradient":  # sums over warps
        return 13 * 64 / launch.threads if loop["STG"] and loop["LDS"] else float(loop["LDS"] == 4)
    return 1


def product_trips(launch: Launch, loop: Counter[str]) -> float:
    sums = launch.name == "weights_gradient_products"
    if loop["HMMA"]:  # 16 pixels of a warp at a time
        blocks = math.ceil(launch.pixels / (2048 if sums else 1024))
        return launch.pixels / blocks / (launch.threads // 32 * 16)
    if not sums:
        return 1
    if loop["LDS"] >= 20:  # sums over warps, of 12 terms for each channel
        return 12 * launch.channels / launch.threads
    return float(loop["LDS"] == 4)


def strip_trips(launch: Launch, loop: Counter[str]) -> float:
    groups, threads, taps = launch.groups, launch.threads, 49
    if loop["MUFU.EX2"] and loop["STG"]:  # the strips of a thread, or outputs that must be computed again
        return launch.rounds if launch.name == "backward_keys" else 0
    if loop["FMNMX"] >= 7:
        return 0
    if loop["MUFU.EX2"]:
        return columns_of(launch) * share_of_rows(launch) if loop["MUFU.EX2"] >= 10 else 0
    if loop["HMMA"]:  # the stem's tile, of which a warp makes 8 runs at a time
        return math.ceil(launch.runs / (threads // 32 * 8))
    if loop["STS"] >= 4 and loop["LDG"] >= 4:  # the tile
        if launch.layer == "stem" and launch.name != "backward_keys":
            usual = False
        else:
            usual = loop["LDG.E.U16"] < 8 and (loop["LDG.E.64"] > 0) == (launch.channels % 8 != 0)
        return launch.passes if usual else 0
    if loop["STS.128"] == 1 and loop["LDG"] in (2, 4, 8):  # the stem's matrices, one of several for each warp
        return (4 if loop["LDG"] == 2 else 2) / (threads // 32)
    if loop["LDG"] == 1 and loop["STS"] == 1:  # the prior
        return taps * groups / threads
    if loop["LDS"] >= 4 and not loop["STS"]:  # sums over threads: of the transform, eight at once, and of the prior
        transform = loop["LDS"] >= 8
        if loop["STG"]:
            return (8 * 4 if transform else taps) * groups / threads
        return threads / groups / 8 if transform else threads / launch.stride / groups / 4
    return 0


def columns_of(launch: Launch) -> float:
    """Columns of a window that a thread goes through, on average."""
    return 3.5 if launch.name == "backward_keys" and launch.stride == 2 else 7


def share_of_rows(launch: Launch) -> float:
    """Share of a strip's window rows that are not skipped.

    The rows above a strip, or below it, are skipped if all of them are outside the image.
    """
    strip, stride = launch.strip, launch.stride
    if launch.name == "backward_keys":
        image, above, rows = launch.height, 3 // stride, (strip - 1 + 3) // stride + 3 // stride + 1
        own = (strip - 1) // stride + 1
    else:
        image, above, rows, own = launch.out_height, 3, (strip - 1) * stride + 7, (strip - 1) * stride + 1
    strips = math.ceil(image / strip)
    below = rows - above - own
    return (strips * rows - above - below) / (strips * rows)


def features(code: Code, blocks: object) -> Counter[str]:
    """Instructions by their names, with and without modifiers; "" counts all."""
    found: Counter[str] = Counter()
    for name, count in code.count(blocks).items():
        found[""] += count
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            found[".".join(parts[:length])] += count
    return found


def unused(code: Code, launch: Launch, used: set[int], skipped: set[int]) -> set[int]:
    """Blocks for other alignments, other stems or other passes, and the blocks around them that serve nothing else.

    Such a block is recognized by its instructions, or belongs to one of the `skipped` loops, which never run. With it
    goes the largest region around it that is reached only through one block and contains none of the `used` ones.
    """
    wide = launch.channels % 8 == 0
    other = {"STG.E.U16", "STG.E.64", "LDG.E.64"} if wide else {"STG.E.U16", "STG.E.128", "LDG.E.128"}
    usual = {"STG.E.128", "LDG.E.128"} if wide else {"STG.E.64", "LDG.E.64"}
    for number in code.reachable - skipped:
        names = code.count([number])
        if usual & set(names) or names["EXIT"] or names["MUFU.EX2"]:
            used = used | {number}
    found: set[int] = set()
    for number in code.reachable if launch.layer == "stem" and launch.groups else ():
        names = code.count([number])
        four_inputs = names["LDG.E"] >= 32  # their weights are read one by one
        image_gradient = names["HMMA.16816.F32.BF16"] == 8
        if four_inputs or (launch.dgeo and image_gradient):
            found |= code.dominated(number)
    for number in sorted(code.reachable - used):
        names = code.count([number])
        if launch.groups:
            foreign = bool(other & set(names)) or names["LDG.E.U16"] >= 3
        else:
            foreign = bool({"STG.E.U16", "STG.E.64", "LDG.E.64"} & set(names)) or names["FFMA"] in (48, 64)
            foreign &= not launch.name.endswith("_products")
        if (foreign or number in skipped) and number not in found:
            regions = [code.dominated(above) for above in code.dominators[number]]
            found |= max((region for region in regions if not region & used), key=len, default={number})
    return found


def issued(code: Code, launch: Launch) -> Counter[str]:
    """The instructions that a warp issues, by operation."""
    often = dict.fromkeys(code.reachable, 1.0)
    used, skipped = set[int](), set[int]()
    for loop in code.loops:
        found = features(code, loop.blocks)
        times = trips(launch, found) if found[""] >= 6 else 1
        for number in loop.blocks:
            often[number] *= times
        if times > 0:
            used.add(loop.head)
        else:
            skipped |= loop.blocks
    for number in unused(code, launch, {head for head in used if often[head] > 0}, skipped):
        often[number] = 0
    total: Counter[str] = Counter()
    for number, times in often.items():
        for text in code.block(number):
            total[operation(text)] += times  # type: ignore[assignment]
    return total


def tap_loop(code: Code, launch: Launch) -> tuple[float, float]:
    """Instructions of the loop over taps, with one exponential per tap: for each tap, and all that a warp issues."""
    for loop in code.loops:
        found = features(code, loop.blocks)
        if launch.groups and found["MUFU.EX2"] >= 10 and not found["STG"]:
            return found[""] / found["MUFU.EX2"], found[""] * trips(launch, found) * launch.rounds
    return 0, 0


def memory_floor(layer: str, channels: int, stride: int, batch: int) -> dict[str, float]:
    """Milliseconds to read and write the tensors of a layer's pass once, in bf16; the stem's image is float32."""
    size = SIZES[layer.split(".")[0]] * (2 if layer[-1] == "0" and layer != "res2.0" else 1)
    inputs, outputs, groups = size**2, (size // stride) ** 2, math.ceil(channels / 8)
    wide = layer == "stem"  # its queries and keys are float32
    transforms = groups * (inputs + outputs) * (4 if wide else 2)
    x = 3 * inputs * 4 if wide else channels * inputs * 2
    y, lse = channels * outputs * 2, groups * outputs * 4
    forward, backward = x + transforms + y + lse, 2 * (x + transforms + y) + lse
    return {"forward": batch * forward / BYTES_PER_MS, "attack": batch * backward / BYTES_PER_MS,
            "training": batch * backward / BYTES_PER_MS}  # fmt: skip


def ratios(totals: dict[str, float]) -> dict[str, float]:
    """LR-Net-26 / ResNet-26, where the rest of LR-Net-26 takes 1.45 ms forward and all of ResNet-26 1.67 ms.

    These two are assumptions, inferred from an earlier estimate of the ratios: nothing here counts or measures them. It
    is also assumed that a training step takes three times as long as a forward pass, and an attack step twice as long.
    """
    rest, other = 1.45, 1.67
    return {
        "forward": (rest + totals["forward"]) / other,
        "attack step": (2 * rest + totals["forward"] + totals["attack"]) / (2 * other),
        "training step": (3 * rest + totals["forward"] + totals["training"]) / (3 * other),
    }


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def disassembler() -> str:
    """The path of nvdisasm: on the PATH, beside nvcc, or in triton."""
    toolkit = nvcc.locate()
    places = [str(Path(toolkit[0]).resolve().parent)] if toolkit else []
    for path in sys.path:
        places.append(str(Path(path) / "triton" / "backends" / "nvidia" / "bin"))
    for place in (None, *places):
        if found := shutil.which("nvdisasm", path=place):
            return found
    sys.exit("no nvdisasm: it comes with the CUDA toolkit, and with PyTorch's triton for CUDA")


def short(name: str) -> str:
    """The part of a mangled name that g++ and nvcc agree on: all but the types of parameters."""
    return name.split("EEv")[0]


def compile_kernels(folder: Path) -> tuple[dict[str, Code], dict[str, int]]:
    """The code of each kernel, and its registers."""
    toolkit = nvcc.find()
    if toolkit is None:
        sys.exit("no nvcc to compile the kernels with")
    flags = [*nvcc.FLAGS, "-arch=sm_90", "-Xptxas", "-v", "-cubin"]
    log = run(toolkit.nvcc, *flags, SOURCES / "kernels.cu", "-o", folder / "kernels.cubin")
    registers, name = {}, ""
    for line in log.splitlines():
        if "Compiling entry function" in line:
            name = short(line.split("'")[1])
        elif "Used" in line and "registers" in line:
            registers[name] = int(line.split("Used")[1].split()[0])
    code = kernels(run(disassembler(), "-c", folder / "kernels.cubin"))
    return {short(name): found for name, found in code.items()}, registers


def launches(folder: Path, batch: int, size: int, *layer: int) -> list[Launch]:
    """The launches of the nine layers, or of one layer that is given by its channels and stride."""
    program, shim = folder / "launches", ROOT / "tests" / "cuda_shim"
    compiler = shutil.which("g++") or sys.exit("no g++ to compile the launches with")
    run(compiler, "-std=c++20", "-O0", "-rdynamic", "-w", f"-I{shim}", SOURCES / "launches.cpp", "-o", program)
    return [Launch(**json.loads(line)) for line in run(program, batch, size, *layer).splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        code, registers = compile_kernels(Path(name))
        every = launches(Path(name), arguments.batch, 224)

    rows = []
    totals: dict[str, float] = defaultdict(float)
    loops: dict[str, float] = defaultdict(float)
    floors: dict[str, float] = defaultdict(float)
    layers: dict[str, dict[str, float]] = {}
    for launch in every:
        found = issued(code[short(launch.kernel)], launch)
        warps = launch.blocks * launch.threads / 32
        total = sum(found.values())
        special = sum(count for name, count in found.items() if name.startswith("MUFU"))
        milliseconds = total * warps / SLOTS_PER_MS
        per_tap, of_taps = tap_loop(code[short(launch.kernel)], launch)
        loops[launch.part] += of_taps * warps / SLOTS_PER_MS
        totals[launch.part] += milliseconds
        layer = layers.setdefault(launch.layer, dict.fromkeys(PASSES, 0.0))
        layer[launch.part] += milliseconds
        rows.append({
            "layer": launch.layer, "pass": launch.part, "kernel": launch.name, "blocks": launch.blocks,
            "threads": launch.threads, "shared_bytes": launch.shared, "registers": registers[short(launch.kernel)],
            "instructions_per_warp": round(total), "instructions_per_tap": round(per_tap, 1),
            "ms": round(milliseconds, 4), "exponentials_ms": round(special * warps * SPECIAL_CYCLES / SLOTS_PER_MS, 4),
        })  # fmt: skip
    for launch in {launch.layer: launch for launch in every}.values():
        for part, floor in memory_floor(launch.layer, launch.channels, launch.stride, arguments.batch).items():
            floors[part] += floor
    write_json(arguments.out, {
        "gpu": "H100: 132 multiprocessors x 4 issue slots x 1.755 GHz; nothing ran",
        "batch": arguments.batch, "size": 224, "dtype": "bfloat16",
        "ms": {part: round(totals[part], 3) for part in PASSES},
        "tap_loops_ms": {part: round(loops[part], 3) for part in PASSES},
        "memory_floor_ms": {part: round(floors[part], 3) for part in PASSES},
        "lrnet26_to_resnet26": {name: round(ratio, 2) for name, ratio in ratios(totals).items()},
        "layers_ms": {name: {part: round(ms, 3) for part, ms in found.items()} for name, found in layers.items()},
        "kernels": rows,
    })  # fmt: skip
    for part in PASSES:
        print(f"{part}: {totals[part]:.2f} ms, floor of memory {floors[part]:.2f} ms")
    print("LR-Net-26 / ResNet-26:", ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios(totals).items()))


if __name__ == "__main__":
    main()
