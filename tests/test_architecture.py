"""Rooms import in one direction, and only the command line speaks of its options."""

import ast
import re
from pathlib import Path

import pytest

import robust_lr

PACKAGE = Path(robust_lr.__file__).parent

#: room -> rooms that it may import from, besides itself
ALLOWED = {
    "utils": "",
    "attacks": "utils",
    "ops": "utils",
    "data": "utils",
    "models": "ops data utils",
    "protocols": "attacks utils",
    "config": "protocols data utils",
    "results": "protocols attacks data utils",
    "reports": "results protocols attacks data utils",
    "evaluation": "results protocols models attacks data utils ops",
    "training": "config protocols models attacks data utils ops",
    "paper": "training evaluation results config protocols models attacks data ops utils",
    "suites": "paper training evaluation results config protocols models attacks data ops utils",
    "commands": "suites reports paper training evaluation results config protocols models attacks data ops utils",
    "cli": "commands utils",
    "timm": "models utils",
}
TERMINAL = ("click", "rich")
TERMINAL_ALLOWED = ("commands", "cli", "paper/report.py")


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(file: Path, source: str) -> set[str]:
    """Absolute names of the modules that a file imports, also inside functions and under TYPE_CHECKING."""
    package = ["robust_lr", *file.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "robust_lr" else {module}
    return found


def violations(file: Path, source: str) -> list[str]:
    """List the violations of the rules in a file."""
    room, name, found = room_of(file), file.relative_to(PACKAGE).as_posix(), []
    for module in sorted(imported_modules(file, source)):
        head, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if head == "robust_lr" and other != room and other not in ALLOWED.get(room, "").split():
            found.append(f"{name} imports {module}: {room} may import from {ALLOWED.get(room, 'nothing') or 'nothing'}")
        if head in TERMINAL and not name.startswith(TERMINAL_ALLOWED):
            found.append(f"{name} imports {module}: only the command line prints")
    if not name.startswith(("commands", "cli")):
        found += [f"{name}:{line} names an option of the command line" for line in option_lines(source)]
    return found


def option_lines(source: str) -> list[int]:
    """Lines of messages that raise or log an option such as ``--out``."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise | ast.Return | ast.Call | ast.Assign):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and FLAG.search(part.value):
                    lines.append(part.lineno)
    return sorted(set(lines))


#: an option in the middle of words; arguments of other programs stand alone, e.g. ``nvcc --version``
FLAG = re.compile(r"[\w(:;,] ?\(?--[a-z][a-z-]+")

FILES = [
    file
    for file in sorted(PACKAGE.rglob("*.py"))
    if "__pycache__" not in file.parts and file.parent != PACKAGE / "assets" and file.name != "__main__.py"
] + sorted((PACKAGE / "attacks").glob("*.py"))


@pytest.mark.parametrize("file", sorted(set(FILES)), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_a_file_keeps_to_its_room(file):
    if file == PACKAGE / "__init__.py":
        return  # gathers the public names of all rooms
    assert violations(file, file.read_text(encoding="utf-8")) == []


def test_every_file_stands_in_a_room():
    loose = {file.name for file in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py", "cli.py", "timm.py"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert loose == set()
    assert rooms | {"cli", "timm"} == set(ALLOWED)


@pytest.mark.parametrize(
    ("room", "source", "words"),
    [
        ("utils/rng.py", "from ..models import build", "utils may import from nothing"),
        ("attacks/pgd.py", "def f():\n    from ..evaluation.harness import evaluate", "attacks may import from utils"),
        ("training/loop.py", "if TYPE_CHECKING:\n    from ..evaluation import harness", "training may import from"),
        ("results/merge.py", "import robust_lr.evaluation.harness", "results may import from"),
        ("data/dataset.py", "from .. import protocols", "data may import from utils"),
        ("evaluation/harness.py", "import click", "only the command line prints"),
        ("paper/jobs.py", "from rich.table import Table", "only the command line prints"),
        ("results/ledger.py", 'raise ValueError("choose another (--out)")', "names an option"),
        ("results/ledger.py", 'HINT = {"a": "; save them with --save-targets"}', "names an option"),
    ],
)
def test_a_wrong_import_or_message_is_found(room, source, words):
    assert any(words in line for line in violations(PACKAGE / room, source))


def test_rooms_form_no_cycle():
    depth: dict[str, int] = {}

    def depth_of(room: str, above: tuple[str, ...] = ()) -> int:
        assert room not in above, f"{' -> '.join([*above, room])} is a cycle"
        if room not in depth:
            others = [depth_of(other, (*above, room)) for other in ALLOWED[room].split()]
            depth[room] = 1 + max(others, default=0)
        return depth[room]

    assert max(depth_of(room) for room in ALLOWED if room not in ("cli", "timm")) <= 8
