"""Basic blocks and loops of machine code, as nvdisasm prints it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_SECTION = re.compile(r"\s*\.section\s+\.text\.(\S+?),")
_LABEL = re.compile(r"(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Loop:
    """A natural loop: the blocks that lead back to its head without leaving it."""

    head: int
    blocks: frozenset[int]


class Code:
    """One kernel's instructions, its basic blocks in order, and its loops."""

    def __init__(self, lines: list[tuple[str, str]]):
        labels: dict[str, int] = {}
        self.instructions: list[str] = []
        for kind, text in lines:
            if kind == "label":
                labels[text] = len(self.instructions)
            else:
                self.instructions.append(text)
        self.starts = self._leaders(labels)
        self.block_of = {start: number for number, start in enumerate(self.starts)}
        self.successors = [self._successors(number, labels) for number in range(len(self.starts))]
        self.reachable = self._reach()
        self.loops = self._loops()

    def _leaders(self, labels: dict[str, int]) -> list[int]:
        found = {0, *(at for at in labels.values() if at < len(self.instructions))}
        found |= {at + 1 for at, text in enumerate(self.instructions) if opcode(text) in ("BRA", "EXIT", "RET", "CALL")}
        return sorted(at for at in found if at < len(self.instructions))

    def block(self, number: int) -> list[str]:
        end = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.instructions)
        return self.instructions[self.starts[number] : end]

    def _successors(self, number: int, labels: dict[str, int]) -> list[int]:
        last = self.block(number)[-1]
        name, guarded = opcode(last), last.startswith("@")
        found = []
        if name == "BRA" and (target := _TARGET.search(last)):
            uniform = re.search(r"BRA\.U[. ].*!?UP\d", last) is not None
            if operation(last).startswith("BRA.DIV"):  # taken where a warp has diverged, which it does not here
                guarded = True
            else:
                found.append(self.block_of[labels[target[1]]])
                guarded = guarded or uniform
        if (name not in ("BRA", "EXIT", "RET") or guarded) and number + 1 < len(self.starts):
            found.append(number + 1)
        return found

    def _reach(self) -> set[int]:
        found, waiting = {0}, [0]
        while waiting:
            for following in self.successors[waiting.pop()]:
                if following not in found:
                    found.add(following)
                    waiting.append(following)
        return found

    def _dominators(self) -> list[set[int]]:
        count = len(self.starts)
        before: list[list[int]] = [[] for _ in range(count)]
        for number in self.reachable:
            for other in self.successors[number]:
                before[other].append(number)
        every = set(range(count))
        found = [{0}] + [every] * (count - 1)
        changed = True
        while changed:
            changed = False
            for number in range(1, count):
                known = [found[other] for other in before[number]]
                new = set.intersection(*known) | {number} if known else {number}
                if new != found[number]:
                    found[number], changed = new, True
        self.predecessors = before
        return found

    def _loops(self) -> list[Loop]:
        self.dominators = dominators = self._dominators()
        heads: dict[int, set[int]] = {}
        for number in self.reachable:
            for head in self.successors[number]:
                if (head in dominators[number] and head != number) or (head == number and len(self.block(number)) > 1):
                    body, waiting = heads.setdefault(head, {head}), [number]
                    while waiting:
                        block = waiting.pop()
                        if block not in body:
                            body.add(block)
                            waiting += self.predecessors[block]
        return [Loop(head, frozenset(blocks)) for head, blocks in sorted(heads.items())]

    def dominated(self, number: int) -> set[int]:
        """The blocks that are reached through this one only."""
        return {other for other in self.reachable if number in self.dominators[other]}

    def count(self, blocks: object) -> Counter[str]:
        return Counter(operation(text) for number in blocks for text in self.block(number))


def opcode(text: str) -> str:
    """The operation without its modifiers."""
    return operation(text).split(".")[0]


def operation(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]


def kernels(disassembly: str) -> dict[str, Code]:
    """The code of each kernel by its mangled name."""
    found: dict[str, list[tuple[str, str]]] = {}
    lines: list[tuple[str, str]] | None = None
    for line in disassembly.splitlines():
        if match := _SECTION.match(line):
            lines = found.setdefault(match[1], [])
        elif line.lstrip().startswith(".section"):
            lines = None
        elif lines is not None:
            if match := _LABEL.match(line):
                lines.append(("label", match[1]))
            elif match := _INSTRUCTION.match(line):
                lines.append(("instruction", match[1]))
    return {name: Code(lines) for name, lines in found.items() if lines}
