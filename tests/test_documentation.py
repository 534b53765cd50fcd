"""README, documentation and examples: Python runs as written, commands are understood, links and files are there."""

import glob
import json
import os
import re
import shlex
import statistics
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import robust_lr as rlr
from robust_lr.cli import COMMANDS, main
from robust_lr.config.training import find
from robust_lr.data.dataset import Dataset
from robust_lr.protocols.presets import PROTOCOLS, SWEEPS

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
}
#: commands that end within a second, and are run as written
QUICK = ("list", "protocol", "completion", "doctor", "table 8 --count-only")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def command_lines():
    for page in PAGES:
        for block in blocks(page, "(?:sh|bash|console)"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if "robust_lr" in words and "-m" in words:  # torchrun and python
                    words = ["robust-lr", *words[words.index("robust_lr") + 1 :]]
                if words[:1] == ["robust-lr"]:
                    yield page, " ".join(map(shlex.quote, words[1:]))


#: a word that stands for what the reader has
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b")
LINES = sorted({line for _, line in command_lines()})


def test_the_readme_is_short():
    text = re.sub(r"```.*?```|!\[.*?\]\(.*?\)", "", PAGES["README.md"], flags=re.DOTALL)
    assert len(text.split()) < 700


@pytest.mark.parametrize("line", LINES)
def test_commands_are_understood(line):
    words = shlex.split(line)
    command = main
    while isinstance(command, click.Group):
        name = words.pop(0)
        if name.startswith("-"):
            return  # --help, --version
        command = command.get_command(click.Context(command), name)
        assert command is not None, name
    values = command.make_context(command.name, words).params
    config, protocol = values.get("config"), values.get("protocol")
    if (
        config is not None
        and not config.isupper()
        and not Path(config).suffix
        and "/" not in config.removeprefix("imagenet/")
    ):
        find(config)
    if protocol is not None and not protocol.isupper() and not protocol.endswith(".toml"):
        assert protocol in {**PROTOCOLS, **SWEEPS}


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith(QUICK) and not PLACEHOLDER.search(line)])
def test_quick_commands_run(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, shlex.split(line))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_examples_run(page, tmp_path, monkeypatch):
    load = rlr.data.load

    def some(name="fashion-mnist-mini", split="train", root=None, **options):
        return load(name, split, root, **options).subset(torch.arange(128 if split == "train" else 16))

    monkeypatch.setattr(rlr.data, "load", some)
    monkeypatch.setattr(Dataset, "take", lambda self, n: self.subset(torch.arange(min(n, len(self)))))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"np": np}
    for example in blocks(page, "python"):
        exec(compile(example, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", PAGES[page]):
        if not target.startswith(("http://", "https://", "mailto:")):
            found = (ROOT / page).parent.joinpath(target).exists()
            assert found or target.startswith(
                ("changelog.md", "contributing.md", "examples.md", "commands/", "protocols/")
            ), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    folders = "benchmarks|configs|examples|robust_lr|tests"
    for name in re.findall(rf"`((?:{folders})/[^`\s]*|\w+\.md|pyproject\.toml)`", PAGES[page]):
        choices = re.search(r"\{(.*)\}", name)
        for choice in choices[1].split(",") if choices else [""]:
            assert glob.glob(os.fspath(ROOT / re.sub(r"\{.*\}", choice, name))), name


def table9_rows():
    """The README's table from the JSON that ``robust-lr table9`` wrote."""
    record = json.loads((ROOT / "benchmarks/results/table9-fashion-mnist-mini-cpu.json").read_text())
    for row in record["rows"]:
        cells = []
        for regime in ("adversarial", "regular"):
            ours = row["ours"][regime]
            for name, key in (
                ("lrnet-targeted", "clean_accuracy"),
                ("lrnet-targeted", "robust_accuracy"),
                ("lrnet-untargeted", "robust_accuracy"),
            ):
                found = [100 * run[key] for run in ours[name]["runs"]]
                spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
                cells.append(f"{statistics.mean(found):.1f}{spread}")
        yield f"| {row['label']} | {' | '.join(cells)} |"


def test_the_table_of_the_readme_is_what_was_measured():
    for row in table9_rows():
        assert row in PAGES["README.md"].splitlines()


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        if page.startswith("docs/"):
            assert page.removeprefix("docs/") in text, page


def test_every_command_has_a_line_in_the_overview():
    result = CliRunner().invoke(main, ["--help"])
    for name, (_, _, summary) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary.split()[0])}", result.output, re.MULTILINE), name
