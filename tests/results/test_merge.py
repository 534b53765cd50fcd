import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.protocols.pgd import PGD
from robust_lr.results.shards import merge_when_complete, parse_shard, shard_folder
from robust_lr.results.stored import read_ledger
from robust_lr.utils.devices import torchrun_shard
from robust_lr.utils.errors import InputError

AIMED = PGD(eps=16 / 255, step_size=4 / 255, steps=3, targeted=True, record=(1, 3))


@pytest.fixture(scope="module")
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(100)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


@pytest.fixture(scope="module")
def shards(data, model, tmp_path_factory):
    """The whole, and its three shards."""
    folder = tmp_path_factory.mktemp("shards")
    rlr.evaluate(model, data, AIMED, out=folder / "whole")
    for i in (1, 2, 3):
        rlr.evaluate(model, data, AIMED, out=folder / str(i), shard=(i, 3), batch_size=7)
    return folder


def timeless(folder):
    configuration, rows = read_ledger(folder)
    return configuration, [dataclasses.replace(row, seconds=0) for row in rows]


def result(folder):
    record = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in record.items() if key not in ("seconds", "command", "date")}


def test_merged_shards_equal_the_whole_to_the_bit_in_any_order(shards, data, model, tmp_path):
    joined = rlr.merge([shards / name for name in "312"], tmp_path / "joined")
    assert timeless(tmp_path / "joined") == timeless(shards / "whole")
    assert result(tmp_path / "joined") == result(shards / "whole")
    assert joined.to_dict() == json.loads((tmp_path / "joined" / "result.json").read_text())
    assert sorted(os.listdir(tmp_path / "joined")) == ["ledger.sqlite", "result.json"]
    # it counts as an evaluation that went on to its end
    rlr.evaluate(model, data, AIMED, out=tmp_path / "joined", resume=True)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("12", r"missing: shard 3/3; give the folders of all 3 shards"),
        ("3", "missing: shard 1/3, 2/3"),
        ("1223", "shard 2/3 is given twice"),
        (["1", "2", "3", "whole"], "whole is not a shard but a whole evaluation"),
        ([], "nothing to merge"),
    ],
)
def test_missing_and_repeated_shards_are_errors(shards, tmp_path, names, words):
    with pytest.raises(InputError, match=words):
        rlr.merge([shards / name for name in names], tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_shards_of_different_evaluations_are_refused(shards, data, model, tmp_path):
    rlr.evaluate(model, data, AIMED, out=tmp_path / "seed", shard=(3, 3), seed=1)
    rlr.evaluate(model, data, AIMED, out=tmp_path / "half", shard=(2, 2))
    with pytest.raises(InputError, match="different evaluations: seed is 0 in the first, 1 in the second"):
        rlr.merge([shards / "1", shards / "2", tmp_path / "seed"], tmp_path / "new")
    with pytest.raises(InputError, match=r"1 is shard 1/3 and .*half 2/2: give shards with the same number of parts"):
        rlr.merge([shards / "1", tmp_path / "half"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_image_in_two_shards_is_an_error(shards, tmp_path):
    for name in "123":
        shutil.copytree(shards / name, tmp_path / name)
    import sqlite3

    first = read_ledger(shards / "1")[1][0].id
    with sqlite3.connect(tmp_path / "2" / "ledger.sqlite") as connection:
        connection.execute("UPDATE images SET id = ? WHERE id = (SELECT max(id) FROM images)", (first,))
    connection.close()
    with pytest.raises(InputError, match=f"image {first} is in both .*1 and .*2"):
        rlr.merge([tmp_path / name for name in "123"], tmp_path / "new")


def test_an_evaluation_is_not_overwritten(shards, tmp_path):
    shutil.copytree(shards / "whole", tmp_path / "out")
    with pytest.raises(InputError, match="out holds an evaluation"):
        rlr.merge([shards / name for name in "123"], tmp_path / "out")
    assert timeless(tmp_path / "out") == timeless(shards / "whole")


def test_an_old_rollback_journal_does_not_affect_the_new_ledger(shards, tmp_path):
    """A journal beside a database that is gone: SQLite would play it into the one that takes its place."""
    out = tmp_path / "out"
    shutil.copytree(shards / "whole", out)
    code = f"""
import os, sqlite3
connection = sqlite3.connect({str(out / "ledger.sqlite")!r})
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
connection.execute("UPDATE images SET label = 7, input_hash = hex(randomblob(500))")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    journal = out / "ledger.sqlite-journal"
    assert journal.stat().st_size > 512
    rlr.merge([shards / name for name in "123"], out, fresh=True)
    assert timeless(out) == timeless(shards / "whole")
    assert not journal.exists()


def test_the_agreement_of_a_lower_precision_is_that_of_the_sample_which_shards_share(data, model, tmp_path):
    options = {"precision": "bf16", "name": "net"}
    shards = [rlr.evaluate(model, data, AIMED, out=tmp_path / str(i), shard=(i, 2), **options) for i in (1, 2)]
    joined = rlr.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    assert joined.agreement.n == 64
    assert joined.agreement == shards[0].agreement == shards[1].agreement
    again = rlr.evaluate(model, data, AIMED, out=tmp_path / "out", resume=True, **options)
    assert again.agreement == joined.agreement


# torchrun


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "a/b", "1/3/5", "-1/3", ""])
def test_shards_are_parsed(text):
    assert parse_shard("2/3") == (2, 3)
    with pytest.raises(InputError, match="write i/n with 1 <= i <= n"):
        parse_shard(text)


def test_torchrun_s_environment_gives_the_shard():
    assert torchrun_shard({}) is None
    assert torchrun_shard({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert torchrun_shard({"RANK": "2", "WORLD_SIZE": "4"}) == (3, 4)
    for environment in ({"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "x", "WORLD_SIZE": "4"}, {"WORLD_SIZE": "-2"}):
        with pytest.raises(InputError, match="torchrun sets whole numbers"):
            torchrun_shard(environment)


def test_the_last_process_merges(shards, data, model, tmp_path):
    for i in (1, 2, 3):
        assert merge_when_complete(tmp_path, 3) is None
        shutil.copytree(shards / str(i), shard_folder(tmp_path, (i, 3)))
    assert merge_when_complete(tmp_path, 3).n == 100
    assert merge_when_complete(tmp_path, 3).n == 100  # two may be last at once
    assert timeless(tmp_path) == timeless(shards / "whole")


def test_two_processes_of_torchrun_give_the_rows_of_one(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    command = [sys.executable, "-m", "robust_lr", "attack", "--targeted", "--limit", "1000", "--threads", "1"]
    command += ["--model", tmp_path / "nets.py:make", "--data", "fashion-mnist-mini", "--out", tmp_path / "both"]
    processes = [
        subprocess.Popen(
            [*command, "--device", "cpu"],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    whole = rlr.data.load("fashion-mnist-mini", "test")
    same = rlr.load_source(f"{tmp_path / 'nets.py'}:make")  # with the hash of its code
    rlr.evaluate(same, whole, "lrnet-targeted", name="nets-make", out=tmp_path / "whole")
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert timeless(tmp_path / "both") == timeless(tmp_path / "whole")
    both, alone = result(tmp_path / "both"), result(tmp_path / "whole")
    probed = {"verdict", "verdict_reason", "verdict_advice", "bound", "inflation", "validity"}  # of each shard's sample
    assert {key for key in both if both[key] != alone[key]} <= probed
    assert any("robust accuracy" in stdout for stdout, _ in outputs)
    assert all("500 images" in stdout for stdout, _ in outputs)


def test_a_merged_ledger_keeps_the_findings_of_probes(data, model, tmp_path):
    for i in (1, 2):
        rlr.evaluate(model, data, AIMED, out=tmp_path / str(i), shard=(i, 2), check="default")
    merged = rlr.merge([tmp_path / "1", tmp_path / "2"], tmp_path / "joined")
    again = rlr.evaluate(model, data, AIMED, out=tmp_path / "joined", resume=True, check="default")
    assert merged.probes.sample
    assert again.probes == merged.probes
    assert again.judgment == merged.judgment
    assert again.origin == merged.origin
