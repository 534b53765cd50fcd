"""Pages that are generated from the code: one for each command and each protocol, the changelog, contributing."""

import inspect
import re
from pathlib import Path

import click
from mkdocs.structure.files import File, Files

from robust_lr.cli import COMMANDS, main
from robust_lr.protocols.files import to_toml
from robust_lr.protocols.presets import PROTOCOLS, SWEEPS

ROOT = Path(__file__).parents[2]
#: files of the repository that are pages, too
COPIED = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "examples.md": "examples/README.md"}


def on_config(config):
    """Put the generated pages into the navigation, and leave out pages that are not there."""
    pages = {
        "COMMANDS": [{name: f"commands/{name}.md"} for name in sorted(COMMANDS)],
        "PROTOCOLS": [{name: f"protocols/{name}.md"} for name in PROTOCOLS | SWEEPS],
    }
    for section in config.nav:
        for title, entries in section.items():
            if isinstance(entries, list):
                section[title] = [
                    {name: pages.get(page, page)}
                    for entry in entries
                    for name, page in entry.items()
                    if page in pages or page in COPIED or (Path(config.docs_dir) / page).is_file()
                ]
    return config


def on_files(files: Files, config):
    for name, (_, _, summary) in COMMANDS.items():
        files.append(File.generated(config, f"commands/{name}.md", content=command_page(name, summary)))
    for name, protocol in (PROTOCOLS | SWEEPS).items():
        files.append(File.generated(config, f"protocols/{name}.md", content=protocol_page(name, protocol)))
    for page, file in COPIED.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\]\(docs/", "](", text)))
    return files


# Commands


def command_page(name: str, summary: str) -> str:
    command = main.get_command(click.Context(main, info_name="robust-lr"), name)
    assert command is not None
    if isinstance(command, click.Group):
        parts = [f"# robust-lr {name}\n\n{summary}\n"]
        parts += [options_of(command.commands[each], f"robust-lr {name} {each}", "## ") for each in command.commands]
        return "\n".join(parts)
    return options_of(command, f"robust-lr {name}", "# ")


def options_of(command: click.Command, path: str, heading: str) -> str:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    lines = [f"{heading}{path}\n", f"```text\n{usage}\n```\n", prose(command.help or "")]
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
    for group, records in groups.items():
        lines += [f"**{group}**\n", "| option | |", "|---|---|"]
        lines += [f"| `{escaped(names)}` | {text_cell(text)} |" for names, text in records]
        lines.append("")
    return "\n".join(lines)


def prose(text: str) -> str:
    """A command's docstring as Markdown; paragraphs that click is told not to rewrap become code."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)) if text else []:
        if paragraph.startswith("\b"):
            paragraphs.append("```text\n" + paragraph.lstrip("\b\n") + "\n```")
        else:
            paragraphs.append(paragraph)
    return "\n\n".join(paragraphs) + "\n"


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def text_cell(text: str) -> str:
    """The help of an option in a cell of a table, where brackets and angles are plain text."""
    return escaped(" ".join(text.split())).replace("[", "\\[").replace("<", "&lt;")


# Protocols


def protocol_page(name: str, protocol) -> str:
    lines = [f"# {name}\n", f"{protocol}.\n", f"```sh\nrobust-lr attack --protocol {name}\n```\n"]
    for title, values in tables(protocol.values()):
        lines += [f"## {title}\n" if title != name else "", "| value | |", "|---|---|"]
        lines += [f"| `{key}` | {text_cell(words(key, value, values))} |" for key, value in values.items()]
        lines.append("")
    if name in PROTOCOLS:
        lines += ["As a file, to be edited:\n", f"```toml\n{to_toml(protocol)}```\n"]
    return "\n".join(lines)


def tables(values):
    """A protocol's values, and after them those of its parts."""
    own = {key: value for key, value in values.items() if key not in ("name", "parts", "options")}
    own |= dict(values.get("options", {}))
    yield values["name"], own
    for part in values.get("parts", ()):
        yield from tables(part)


def words(key: str, value, values) -> str:
    if key in ("eps", "step_size") and values.get("norm") == "linf" and isinstance(value, float):
        return f"{value * 255:.6g}/255"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
