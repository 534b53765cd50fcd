import json

import pytest
from click.testing import CliRunner

from robust_lr.cli import main


def invoke(*words):
    return CliRunner().invoke(main, ["profile", *map(str, words)])


def test_layers_are_shown_with_a_warning(tmp_path):
    outcome = invoke("lrnet26", "--image-size", 28, "--json", tmp_path / "profile.json")
    assert outcome.exit_code == 0, outcome.output
    assert "layer4.1.conv2" in outcome.output
    assert "warning" in outcome.output
    record = json.loads((tmp_path / "profile.json").read_text())
    assert record["image_size"] == 28
    assert len(record["warnings"]) == 2
    assert sum(layer["covers_map"] for layer in record["layers"]) > 3


def test_options_of_the_model_are_set():
    outcome = invoke(
        "lrnet26", "--image-size", 28, "--set", "stem=stride2", "--set", "kernel_size=5", "--set", "width=0.125"
    )
    assert outcome.exit_code == 0, outcome.output
    assert "14x14" in outcome.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lrnet"], "'lrnet'"),
        (["lrnet26", "--image-size", "0"], "image_size = 0"),
        (["lrnet26", "--image-size", "99999"], "4096"),
        (["lrnet26", "--set", "stem=huge"], "'huge'"),
        (["lrnet26", "--set", "stem"], "key=value"),
        (["lrnet26", "--set", "wdth=1"], "'wdth'"),
    ],
)
def test_bad_input_is_named(words, message):
    outcome = invoke(*words)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
