import dataclasses
import json
import shutil
import sqlite3
from contextlib import closing

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.protocols.pgd import PGD
from robust_lr.utils.errors import InputError
from robust_lr.utils.statistics import mcnemar

AIMED = PGD(eps=16 / 255, step_size=4 / 255, steps=3, targeted=True)


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(120)


def linear(seed):
    """A little trained, so that models differ."""
    x, y, _ = rlr.data.load("fashion-mnist-mini", "train").batch(torch.arange(600))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20 if seed else 60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Three models under one protocol; each a folder of its name."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("a", "b", "c")):
        rlr.evaluate(linear(seed), data, AIMED, out=folder / name, name=name)
    return folder


def column(folder, name):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        return [row[0] for row in connection.execute(f"SELECT {name} FROM images ORDER BY id")]


def test_pairs_are_counted_image_by_image(runs):
    comparison = rlr.compare([runs / name for name in "abc"])
    assert list(comparison.accuracies) == ["a", "b", "c"]
    assert [(pair.first, pair.second) for pair in comparison.pairs_in("robust")] == [("a", "b"), ("a", "c"), ("b", "c")]
    for figure, right in {"robust": "robust", "worst-seen": "robust_worst_seen", "clean": "clean = label"}.items():
        for pair in comparison.pairs_in(figure):
            first, second = column(runs / pair.first, right), column(runs / pair.second, right)
            seen = list(zip(first, second, strict=True))
            assert (pair.both, pair.only_first) == (seen.count((1, 1)), seen.count((1, 0)))
            assert (pair.only_second, pair.neither) == (seen.count((0, 1)), seen.count((0, 0)))
            assert pair.difference == pytest.approx((sum(first) - sum(second)) / 120)
            assert pair.interval[0] <= pair.difference <= pair.interval[1]
            assert pair.p == mcnemar(pair.only_first, pair.only_second)
            assert pair.p <= pair.p_holm <= 3 * pair.p
            assert comparison.accuracies[pair.first][figure].count == sum(first)
    assert any(pair.only_first != pair.only_second for pair in comparison.pairs)
    assert json.loads(json.dumps(comparison.to_dict()))["pairs"][0]["figure"] == "clean"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": dataclasses.replace(AIMED, eps=8 / 255)}, r"protocol\.eps is 0\.06.* in the first, 0\.03"),
        ({"protocol": dataclasses.replace(AIMED, targeted=False)}, r"protocol\.targeted is True in the first, False"),
        ({"protocol": dataclasses.replace(AIMED, restarts=2)}, r"protocol\.restarts is 1 in the first, 2"),
        ({"seed": 1}, "seed is 0 in the first, 1 in the second"),
        ({"images": slice(0, 100)}, "n is 120 in the first, 100 in the second"),
        ({"images": [*range(119), 150]}, r"images_sha256 is \w{8}\.\.\. in the first, .* \(the images differ\)"),
        (
            {"protocol": dataclasses.replace(AIMED, target="least-likely")},
            "targets_sha256 is .*as `targets`",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_with_the_difference(runs, data, tmp_path, changes, words):
    options = {"protocol": AIMED, **changes}
    images = options.pop("images", slice(None))
    everything = rlr.data.load("fashion-mnist-mini", "test")
    some = everything.subset(range(120)[images] if isinstance(images, slice) else images)
    rlr.evaluate(linear(1), some, out=tmp_path / "other", **options)
    with pytest.raises(InputError, match=f"cannot be compared: {words}"):
        rlr.compare([runs / "a", tmp_path / "other"])


def test_different_shards_cannot_be_compared(data, tmp_path):
    for index in (1, 2):
        rlr.evaluate(linear(1), data, AIMED, out=tmp_path / str(index), shard=(index, 2))
    with pytest.raises(InputError, match="shard is '1/2' in the first, '2/2' in the second"):
        rlr.compare([tmp_path / "1", tmp_path / "2"])


def test_other_pixels_under_the_same_names_cannot_be_compared(runs, tmp_path):
    """A folder's hash covers names and sizes of files, not what another decoder makes of them."""
    shutil.copytree(runs / "b", tmp_path / "b")
    with closing(sqlite3.connect(tmp_path / "b" / "ledger.sqlite")) as connection, connection:
        connection.execute("UPDATE images SET input_hash = 'f' WHERE id = (SELECT max(id) FROM images)")
    with pytest.raises(InputError, match=r"the input_hash of image \d+ is \w+ in the first, f in the second"):
        rlr.compare([runs / "a", tmp_path / "b"])


def test_names_of_protocols_and_how_targets_were_chosen_do_not_matter(runs, data, tmp_path):
    renamed = dataclasses.replace(AIMED, name="mine", source="me")
    rlr.evaluate(linear(1), data, renamed, out=tmp_path / "b", name="b", targets=rlr.draw_targets(data))
    assert rlr.compare([runs / "a", tmp_path / "b"]).pairs == rlr.compare([runs / "a", runs / "b"]).pairs


def test_models_with_one_name_are_named_by_their_folders(runs, tmp_path):
    shutil.copytree(runs / "a", tmp_path / "a")
    assert list(rlr.compare([runs / "a", tmp_path / "a"]).accuracies) == [str(runs / "a"), str(tmp_path / "a")]
    with pytest.raises(InputError, match="is given twice"):
        rlr.compare([runs / "a", runs / "a"])


def test_folders_without_a_finished_evaluation_are_named(runs, tmp_path):
    with pytest.raises(InputError, match="needs the folders of two evaluations"):
        rlr.compare([runs / "a"])
    with pytest.raises(InputError, match=rf"holds no evaluation .*; it holds {runs / 'a'}, {runs / 'b'}"):
        rlr.compare([runs, runs / "a"])
    with pytest.raises(InputError, match=r"gone holds no evaluation \(ledger\.sqlite\); give the `out`"):
        rlr.compare([runs / "a", tmp_path / "gone"])
    for name in ("short", "bare", "bad", "old"):
        shutil.copytree(runs / "b", tmp_path / name)
    with closing(sqlite3.connect(tmp_path / "short" / "ledger.sqlite")) as connection, connection:
        connection.execute("DELETE FROM images WHERE id % 3 = 0")
    (tmp_path / "bare" / "result.json").unlink()
    (tmp_path / "bad" / "result.json").write_text("{")
    with closing(sqlite3.connect(tmp_path / "old" / "ledger.sqlite")) as connection, connection:
        connection.execute("ALTER TABLE images DROP COLUMN margin")
    for name, words in {
        "short": r"is not finished: \d+ of 120 images",
        "bare": "has no result.json yet",
        "bad": "is damaged",
        "old": "cannot be read as a ledger of this version",
    }.items():
        before = (tmp_path / name / "ledger.sqlite").read_bytes()
        with pytest.raises(InputError, match=words):
            rlr.compare([runs / "a", tmp_path / name])
        assert (tmp_path / name / "ledger.sqlite").read_bytes() == before


def test_the_command_prints_both_tables_and_writes_all_results(runs, tmp_path):
    arguments = ["compare", *(str(runs / name) for name in "abc"), "--json", str(tmp_path / "c.json")]
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    comparison = rlr.compare([runs / name for name in "abc"])
    assert json.loads((tmp_path / "c.json").read_text()) == json.loads(json.dumps(comparison.to_dict()))
    for pair in comparison.pairs_in("robust"):
        low, high = pair.interval
        for text in (f"{100 * pair.difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", f"{pair.p_holm:.2g}"):
            assert text in result.output
    for figures in comparison.accuracies.values():
        assert str(figures["robust"]) in result.output
    result = CliRunner().invoke(main, [*arguments[:-2], "--figure", "robusd"])
    assert "unknown figure 'robusd': did you mean 'robust'? choose one of clean, robust, worst-seen" in result.stderr
    assert result.exit_code == 2
    result = CliRunner().invoke(main, ["compare", str(runs / "a")])
    assert (result.exit_code, result.stderr) == (
        2,
        "robust-lr: a comparison needs the folders of two evaluations or more, not 1\n",
    )
