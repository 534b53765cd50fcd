"""Translates nvcc's PTX to C++ that runs on the CPU, a function for each kernel and thread.

What nvcc made of the kernels (contractions, approximate instructions, vector accesses) runs as it stands in the PTX.
Every access to memory goes through memory.h, which checks its alignment and hands it to the detector. An instruction
that is not known here is an error. A kernel counts the instructions that it executes, by kind.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

#: C++ type of registers by the prefix of their names
REGISTERS = {"p": "bool", "rs": "std::uint16_t", "r": "std::uint32_t", "rd": "std::uint64_t", "f": "float",
             "fd": "double"}  # fmt: skip
TYPES = {
    "u8": "std::uint8_t", "u16": "std::uint16_t", "s16": "std::int16_t", "b16": "std::uint16_t", "u32": "std::uint32_t",
    "s32": "std::int32_t", "b32": "std::uint32_t", "u64": "std::uint64_t", "s64": "std::int64_t",
    "b64": "std::uint64_t", "f32": "float", "f64": "double", "pred": "bool",
}  # fmt: skip
SPECIAL = {"%tid.x": "threadIdx.x", "%ctaid.x": "blockIdx.x", "%ntid.x": "blockDim.x"}

COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "ltu": "<", "leu": "<=",
               "gtu": ">", "geu": ">=", "lo": "<", "hi": ">"}  # fmt: skip
BINARY = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
FUNCTIONS = {"min": "smaller", "max": "larger", "div": "quotient", "rem": "remainder", "shl": "shift_left",
             "shr": "shift_right"}  # fmt: skip

#: the kinds that instructions are counted by; the first one is for all that belong to no other
KINDS = ("other", "float", "exponential", "shuffle", "product", "shared", "global")

_ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)\s*(?:\.\w+[^\n{]*\s*)*\{(.*?)\n\}", re.DOTALL)
_PARAMETER = re.compile(r"\.param (?:\.align \d+ )?\.\w+ (\w+)")
_DECLARATION = re.compile(r"\.reg \.\w+\s+%(\w+)<(\d+)>")
_STATEMENT = re.compile(r"(?:@(!?)%(p\d+)\s+)?([a-z][\w.]*)\s*(.*)", re.DOTALL)


@dataclass
class Kernel:
    """A kernel as C++."""

    name: str
    parameters: list[str]
    lines: list[str] = field(default_factory=list)
    waiting: Counter[str] = field(default_factory=Counter)  # instructions since the last one that is counted, by kind


def translate(ptx: str) -> tuple[str, list[str]]:
    """The C++ of all kernels, and their names."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    functions, names = [], []
    for name, parameters, body in _ENTRY.findall(ptx):
        names.append(name)
        functions.append(_function(len(names) - 1, name, _PARAMETER.findall(parameters), body))
    table = "".join(f'    {{"{name}", ptx_{number}}},\n' for number, name in enumerate(names))
    table = f"const std::vector<ptx::Kernel> ptx::kernels = {{\n{table}}};\n"
    return '#include "memory.h"\n\nusing namespace ptx;\n\n' + "\n".join(functions) + "\n" + table, names


def _function(number: int, name: str, parameters: list[str], body: str) -> str:
    kernel = Kernel(name, parameters)
    lines = [f"static void ptx_{number}(const void* const* parameters) {{", f"  Counts& executed = counts[{number}];"]
    lines += [
        f"  {REGISTERS[prefix]} {', '.join(f'{prefix}{i}{{}}' for i in range(int(count)))};"
        for prefix, count in _DECLARATION.findall(body)
    ]
    body = re.sub(r"\.(reg|maxntid|minnctapersm|pragma)[^;\n]*;?", "", body)
    body = re.sub(r"(\$L__BB\w+):", r"\1:;", body)
    body = re.sub(r"\{\s+(\w[^{}]*;)\s*\}", r"\1", body)  # blocks of inline assembly
    for statement in body.split(";"):
        if statement := " ".join(statement.split()):
            _statement(kernel, statement)
    return "\n".join([*lines, *kernel.lines, "}"])


def _statement(kernel: Kernel, statement: str) -> None:
    if statement.endswith(":"):
        _count(kernel)
        kernel.lines.append(f" {_label(statement[:-1])}:;")
        return
    match = _STATEMENT.fullmatch(statement)
    assert match is not None, statement
    negated, guard, name, rest = match.groups()
    kernel.waiting[_kind(name)] += 1
    if name in ("bra", "bra.uni", "ret") or guard:
        _count(kernel)
    code = _instruction(kernel, name, _operands(rest))
    condition = f"if ({negated or ''}{guard}) " if guard else ""
    kernel.lines.append(f"  {condition}{{ {code} }}")


def _count(kernel: Kernel) -> None:
    kernel.lines += [f"  executed[{KINDS.index(kind)}] += {count};" for kind, count in kernel.waiting.items()]
    kernel.waiting.clear()


def _kind(name: str) -> str:
    parts = name.split(".")
    if parts[0] in ("ld", "st") and parts[1] in ("shared", "global"):
        return parts[1]
    if parts[0] in ("add", "sub", "fma") and parts[-1] == "f32":  # not mul, which ptxas fuses with additions
        return "float"
    return {"ex2": "exponential", "shfl": "shuffle", "mma": "product"}.get(parts[0], "other")


def _label(name: str) -> str:
    return name.strip().replace("$", "")


def _operands(text: str) -> list[str]:
    return [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", text)]


def _value(kernel: Kernel, operand: str, kind: str) -> str:
    """An operand as a C++ expression of a type."""
    if operand in SPECIAL:
        return SPECIAL[operand]
    if operand.startswith("%"):
        register = operand[1:]
        own = REGISTERS[re.match(r"[a-z]+", register)[0]]  # type: ignore[index]
        return register if own == TYPES[kind] else f"as<{TYPES[kind]}>({register})"
    if operand.startswith("0f"):
        return f"as<{TYPES[kind]}>(as<float>(std::uint32_t(0x{operand[2:]}u)))"
    if operand.startswith("0d"):
        return f"as<double>(std::uint64_t(0x{operand[2:]}ull))"
    if operand in kernel.parameters:
        return f"std::uint64_t(parameters[{kernel.parameters.index(operand)}])"
    if operand.endswith("shared_memoryE"):
        return "std::uint32_t(0)"
    assert re.fullmatch(r"-?\d+|0x[0-9A-Fa-f]+", operand), operand
    return f"{TYPES[kind]}({operand}ll)"


def _address(kernel: Kernel, operand: str) -> str:
    base, _, offset = operand.strip("[]").partition("+")
    if base in kernel.parameters:
        value = f"std::uint64_t(parameters[{kernel.parameters.index(base)}])"
    elif base.endswith("shared_memoryE"):
        value = "std::uint64_t(0)"
    else:
        value = f"std::uint64_t({base[1:]})"
    return f"{value} + ({int(offset or 0)})"


def _list(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{}").split(",")]


def _memory(kernel: Kernel, parts: list[str], operands: list[str]) -> str:
    """A load or store, of several elements at once."""
    action, space, kind = parts[0], parts[1], parts[-1]
    loads = action == "ld"
    registers, place = (operands[0], operands[1]) if loads else (operands[1], operands[0])
    names = _list(registers)
    count, element = len(names), TYPES[kind]
    lines = [f"const auto at = {_address(kernel, place)};"]
    if loads:
        lines.append(f"const auto found = {space}_load<{element}, {count}>(at);")
        lines += [_set(name, f"found[{i}]", kind) for i, name in enumerate(names)]
    else:
        values = ", ".join(_value(kernel, name, kind) for name in names)
        lines.append(f"{space}_store<{element}, {count}>(at, {{{values}}});")
    return " ".join(lines)


def _set(operand: str, value: str, kind: str) -> str:
    register = operand[1:]
    own = REGISTERS[re.match(r"[a-z]+", register)[0]]  # type: ignore[index]
    return f"{register} = {value};" if own == TYPES[kind] else f"{register} = as<{own}>({value});"


def _instruction(kernel: Kernel, name: str, operands: list[str]) -> str:
    parts = name.split(".")
    action, kind = parts[0], parts[-1]

    def value(index: int, of: str | None = None) -> str:
        return _value(kernel, operands[index], of or kind)

    def assign(expression: str, of: str | None = None) -> str:
        return _set(operands[0], expression, of or kind)

    if action in ("ld", "st"):
        return _memory(kernel, parts, operands)
    if action == "bra":
        return f"goto {_label(operands[0])};"
    if action == "ret":
        return "return;"
    if action == "bar":
        return f'shim::synchronize_block("ptx", {len(kernel.lines)});'
    if action == "shfl":
        function = {"shfl.sync.bfly.b32": "shuffle", "shfl.sync.idx.b32": "shuffle_from"}[name]
        target = operands[0].split("|")[0]
        return _set(target, f"{function}({value(1)}, {value(2)})", "b32")
    if action == "mma":
        assert name == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", name
        return _multiply_matrices(kernel, operands)
    if action == "mov" and "{" in operands[0] + operands[1]:
        return _halves(kernel, kind, operands)
    if action in ("mov", "cvta"):
        return assign(value(1))
    if action == "not":
        return assign(f"!{value(1)}" if kind == "pred" else f"~{value(1)}")
    if action == "neg":
        return assign(f"-{value(1)}" if kind == "f32" else f"{TYPES[kind]}(0 - {value(1, kind.replace('s', 'u'))})")
    if action == "setp":
        compared = f"compare_f(a, b, a {COMPARISONS[parts[1]]} b, {int(parts[1].endswith('u'))})"
        if kind != "f32":
            compared = f"a {COMPARISONS[parts[1]]} b"
        return f"const auto a = {value(1)}, b = {value(2)}; {operands[0][1:]} = {compared};"
    if action == "selp":
        return assign(f"{operands[3][1:]} ? {value(1)} : {value(2)}")
    if action == "fma":
        return assign(f"std::fmaf({value(1)}, {value(2)}, {value(3)})")
    if action == "mad":
        assert parts[1] == "lo", name
        wide = {"s32": "u32", "s64": "u64"}.get(kind, kind)
        return assign(f"{TYPES[kind]}({value(1, wide)} * {value(2, wide)} + {value(3, wide)})")
    if action == "mul":
        return _multiply(parts, kind, operands, value)
    if action in BINARY:
        wide = {"s32": "u32", "s64": "u64"}.get(kind, kind)
        return assign(f"{TYPES[kind]}({value(1, wide)} {BINARY[action]} {value(2, wide)})")
    if name == "max.NaN.f32":
        return assign(f"larger_or_nan({value(1)}, {value(2)})")
    if action in ("shl", "shr"):
        return assign(f"{FUNCTIONS[action]}({value(1)}, {value(2, 'u32')})")
    if name == "div.rn.f32":
        return assign(f"{value(1)} / {value(2)}")
    if action in FUNCTIONS:
        return assign(f"{FUNCTIONS[action]}({value(1)}, {value(2)})")
    if name in ("rcp.rn.f32", "rcp.approx.ftz.f32"):
        return assign(f"1.f / {value(1)}")
    if name == "lg2.approx.ftz.f32":
        return assign(f"std::log2({value(1)})")
    if name == "ex2.approx.ftz.f32":
        return assign(f"exponential({value(1)})")
    if name == "prmt.b32":
        return assign(f"permute({value(1)}, {value(2)}, {value(3)})")
    if name == "bfi.b32":
        return assign(f"insert_bits({value(1)}, {value(2)}, {value(3)}, {value(4)})")
    if action == "cvt":
        return _convert(name, parts, operands, value)
    raise NotImplementedError(f"{kernel.name}: {name} {operands}")


def _halves(kernel: Kernel, kind: str, operands: list[str]) -> str:
    """A move between a register and two of half its size, the lower first; `_` in place of one discards its half."""
    half, bits = ("b16", 16) if kind == "b32" else ("b32", 32)
    if operands[0].startswith("{"):
        whole, names = _value(kernel, operands[1], kind), _list(operands[0])
        values = [f"{TYPES[half]}({whole})", f"{TYPES[half]}({whole} >> {bits})"]
        return " ".join(_set(name, value, half) for name, value in zip(names, values, strict=True) if name != "_")
    low, high = (_value(kernel, name, half) for name in _list(operands[1]))
    return _set(operands[0], f"{TYPES[kind]}({low}) | {TYPES[kind]}({high}) << {bits}", kind)


def _multiply(parts: list[str], kind: str, operands: list[str], value: object) -> str:
    assert callable(value)
    if parts[1] == "wide":
        wide = {"s32": "s64", "u32": "u64"}[kind]
        return _set(operands[0], f"{TYPES[wide]}({value(1)}) * {TYPES[wide]}({value(2)})", wide)
    if kind == "f32":
        return _set(operands[0], f"{value(1)} * {value(2)}", kind)
    if parts[1] == "hi":
        wide = {"s32": "s64", "u32": "u64"}[kind]
        product = f"{TYPES[wide]}({value(1)}) * {TYPES[wide]}({value(2)})"
        return _set(operands[0], f"{TYPES[kind]}(({product}) >> 32)", kind)
    assert parts[1] == "lo", parts
    unsigned = {"s32": "u32", "s64": "u64"}.get(kind, kind)
    return _set(operands[0], f"{value(1, unsigned)} * {value(2, unsigned)}", unsigned)


def _multiply_matrices(kernel: Kernel, operands: list[str]) -> str:
    """A product of a warp: the registers of the result, of both matrices and of the sums that it is added to."""
    result = _list(operands[0])
    left, right, sums = (
        ", ".join(_value(kernel, name, kind) for name in _list(operand))
        for operand, kind in zip(operands[1:], ("b32", "b32", "f32"), strict=True)
    )
    lines = [f"const auto found = multiply({{{sums}}}, {{{left}}}, {{{right}}});"]
    return " ".join(lines + [_set(name, f"found[{i}]", "f32") for i, name in enumerate(result)])


def _convert(name: str, parts: list[str], operands: list[str], value: object) -> str:
    assert callable(value)
    if name == "cvt.rn.relu.bf16x2.f32":
        return _set(operands[0], f"relu_pair({value(1)}, {value(2)})", "b32")
    if name == "cvt.rn.bf16x2.f32":
        return _set(operands[0], f"pair({value(1)}, {value(2)})", "b32")
    if name == "cvt.f32.bf16":
        return _set(operands[0], f"from_bfloat16({value(1, 'b16')})", "f32")
    if name == "cvt.rn.bf16.f32":
        return _set(operands[0], f"to_bfloat16({value(1)})", "b16")
    to, source = parts[-2], parts[-1]
    assert {to, source} <= set(TYPES), name
    assert parts[1:-2] in ([], ["rn"]), name
    return _set(operands[0], f"{TYPES[to]}({value(1, source)})", to)
