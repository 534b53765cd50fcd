"""The command line under random arguments: an exit code of 0, 1 or 2, one line, and nothing half done."""

import importlib
import multiprocessing
import os
import shutil

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robust_lr.cli import COMMANDS, main
from robust_lr.commands.catalog import catalog
from robust_lr.models.build import build_model
from robust_lr.models.checkpoint import save_weights
from robust_lr.utils.errors import RunError

WORDS = [
    *("", " ", "x", "-", "--", "a=b", "=", "[", "{}", "'", "\n", "\U0001f642", "..", "nan", "inf", "1/0"),
    *("0", "1", "2", "-1", "1.5", "1e9", "8/255", "300", "99999999999999999999", "-99999999999999999999"),
    *("0,2,8/255", "1,10,100", "0.5,0.5,0.5", "125", "12,30", "1/2", "2/1", "0/0", "1/99999999999999999999"),
    *("cpu", "cuda:99", "meta", "fp32", "bf16", "robust", "bash", "9.0", "99.9", "imagenet", "cifar10", "none"),
]
OVERRIDES = [
    *("eps=300", "eps=8/255", "eps=nan", "steps=99999999999999999999", "restarts=99999999999999999999", "steps=0"),
    *("attack.eps=300", "attack.steps=99999999999999999999", "train.epochs=0", "train.batch_size=99999999999999999999"),
    *("train.threads=100000", "data.workers=100000", "data.limit=99999999999999999999", "data.name=npz:small.npz"),
    *("model.width=1e9", "model.width=-1", "model.name=resnet18", "model.kernel_size=99999999999999999999", "seed=-1"),
    *("recipe=madry", "recipe=x", "validation.images=99999999999999999999", "loss=x", "a.b.c.d=1", "model=1", "x"),
    *("compute.micro_batch=99999999999999999999", "train.milestones=[1,99999999999999999999]", "model.stem=small"),
]
PATHS = [
    *("", ".", "gone", "file", "small.npz", "tiny.safetensors", "empty.toml", "folder", "file/below", "/proc/x/y"),
    *("a" * 300, "picture.foo", "picture.png", "out", "-", "~", "npz:small.npz", "folder:folder", "tar:folder"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small data set, a small network, and files that are none."""
    folder = tmp_path_factory.mktemp("fuzz")
    np.savez(folder / "small.npz", images=np.zeros((8, 8, 8), np.uint8), labels=np.arange(8) % 2)
    torch.manual_seed(0)
    spec = {"name": "resnet18", "num_classes": 2, "in_channels": 1, "width": 1 / 16, "stem": "small"}
    save_weights(folder / "tiny.safetensors", build_model(**spec), spec, {"data": "npz:small.npz"})
    (folder / "file").write_text("mine")
    (folder / "empty.toml").touch()
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(scope="module")
def no_work(place):
    """Where the real work would begin, commands fail: what comes before it is what is tried."""

    def reached(*arguments, **options):
        raise RunError("the work would begin here")

    for module in ("all_targets", "grid", "sanity"):  # a first import under the patch would keep the patched function
        importlib.import_module(f"robust_lr.evaluation.{module}")
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            ("evaluation.harness", "evaluate_prepared"),
            ("evaluation.sweep", "evaluate_prepared"),
            ("training.run", "_train_run"),
            ("training.plan", "adversarial_train"),
            ("paper.jobs", "multiprocessing.get_context"),
            ("paper.tables", "paper_size"),
            ("paper.report", "describe_stages"),
            ("utils.pictures", "save_picture"),
            ("ops.build", "build"),
        ):
            target = importlib.import_module(f"robust_lr.{module}")
            for part in name.split(".")[:-1]:
                target = getattr(target, part)
            patch.setattr(target, name.split(".")[-1], reached)
        patch.chdir(place)
        yield


def all_commands():
    """Every command with its parameters, those of groups one by one."""
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        if isinstance(command, click.Group):
            yield from (([name, each], command.commands[each].params) for each in command.commands)
        else:
            yield [name], command.params


#: arguments that are right, so that what is drawn beside them is looked at
_MODEL = ["--checkpoint", "tiny.safetensors", "--data", "npz:small.npz"]
RIGHT = {
    "attack": ["--untargeted", *_MODEL],
    "check": _MODEL,
    "adv-train": ["--set", "data.name=npz:small.npz", "--set", "train.batch_size=4", "--set", "model.stem=small"],
    "plan": ["lrnet26_fashion_mnist_mini"],
    "table": ["8", "--count-only"],
    "composability": ["--image", "file"],
}

COMMAND_LINES = list(all_commands())


def values(parameter):
    """Strategy for the words of one parameter."""
    kind = parameter.type
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return st.just([parameter.opts[-1]])
    words = [*PATHS, *WORDS] if isinstance(kind, click.Path) or "data" in (parameter.name or "") else WORDS
    if "overrides" in (parameter.name or ""):
        words = [*OVERRIDES, *WORDS]
    if isinstance(kind, click.Choice):
        words = [*kind.choices, *WORDS[:6]]
    names = {"protocol": "protocols", "name": "protocols", "allow": "guards", "config": "configs", "source": "models"}
    words = [*words, *catalog().get(names.get(parameter.name or "", ""), {})]
    word = st.sampled_from(words)
    if isinstance(parameter, click.Argument):
        return st.lists(word, max_size=3 if parameter.nargs < 0 else 1)
    return word.map(lambda value: [parameter.opts[-1], value])


@st.composite
def lines(draw):
    name, parameters = draw(st.sampled_from(COMMAND_LINES))
    chosen = draw(st.lists(st.sampled_from(parameters), max_size=4, unique_by=id)) if parameters else []
    right = RIGHT.get(name[-1], []) if draw(st.booleans()) else []
    if right:
        chosen = [each for each in chosen if not isinstance(each, click.Argument)]
        return [*name, *right, *(word for each in chosen for word in draw(values(each)))]
    required = [each for each in parameters if isinstance(each, click.Argument) and each not in chosen]
    return [*name, *(word for each in [*chosen, *required] for word in draw(values(each)))]


def tree(folder):
    return sorted(
        (path, file, os.path.getsize(os.path.join(path, file))) for path, _, files in os.walk(folder) for file in files
    )


@pytest.mark.slow
@pytest.mark.usefixtures("no_work")
@settings(
    max_examples=600,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(line=lines())
def test_random_arguments_end_in_one_line(place, line):
    before = tree(place)
    result = CliRunner().invoke(main, line)
    assert result.exit_code in (0, 1, 2), (line, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), line
    assert "Traceback" not in result.output
    if result.exit_code and "Usage:" not in result.stderr:
        problems = [text for text in result.stderr.splitlines() if not text.startswith("warning: ")]
        assert len(problems) <= 1, (line, result.stderr)
        assert problems == [] or problems[0].startswith("robust-lr: "), (line, result.stderr)
        assert "please report" not in result.stderr, (line, result.stderr)
    after = tree(place)
    if result.exit_code == 2:
        assert after == before, line
    assert not [file for _, file, _ in after if file.startswith(".")], line  # a file half written
    assert multiprocessing.active_children() == []
    for path in place.iterdir():  # what commands have made
        if path.name not in ("small.npz", "tiny.safetensors", "file", "empty.toml", "folder"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
