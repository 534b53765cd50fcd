"""Suites: what a file says, what runs, and that it is the same as evaluations one by one."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from helpers import noise, small_run

import robust_lr as rlr
from robust_lr.paper.jobs import run
from robust_lr.reports.html import html
from robust_lr.reports.record import build
from robust_lr.results.curve import CURVE, read_curve
from robust_lr.results.ledger import read as read_rows
from robust_lr.results.stored import LEDGER, RESULT, read_evaluation
from robust_lr.suites.estimate import count_passes, estimate, estimate_table
from robust_lr.suites.job import make_jobs
from robust_lr.suites.spec import Suite, read, shipped
from robust_lr.suites.transfer import write_matrices

NETS = """
import torch
from torch import nn

def make(scale=1.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    net[1].weight.data.mul_(scale)
    return net
"""

SUITE = """
name = "mine"
seeds = [0, 3]
eps = "16/255"
protocols = [
  {{ protocol = "madry-cifar10", name = "pgd", steps = 3 }},
  {{ protocol = "lrnet-targeted", name = "targeted", steps = 2, eps = "4/255" }},
]
[models.plain]
source = "nets.py:make"
[models.scaled]
source = "nets.py:make"
options = {{ scale = 3.0 }}
[data.small]
name = "npz:small.npz"
{more}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with images, code and a suite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), np.uint8)
    np.savez("small.npz", images=images, labels=np.arange(24) % 3)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "suite.toml").write_text(SUITE.format(more=""))
    return tmp_path


def all_rows(folder):
    """Rows by the folder of their ledger, without times."""
    return {
        file.parent.relative_to(folder): [
            tuple(getattr(row, name) for name in ("id", "target", "clean", "adversarial", "robust", "loss"))
            for row in read_rows(file)
        ]
        for file in sorted(folder.rglob(LEDGER))
    }


def run_all(suite, out, workers=1, **options):
    """Results that were reported, in this process or in others."""
    todo, events = make_jobs(suite, out, device="cpu", **options), []
    if workers > 1:
        events = [event for _, event in run(todo, workers=workers)]
    else:
        for number, job in enumerate(todo):
            job.run(number, events.append)
    return [event.detail for event in events if event.kind == "result"]


# Reading a suite file


@pytest.mark.parametrize("name", ["quick", "standard", "paper"])
def test_shipped_suites_are_read(name):
    suite = read(name)
    assert suite.name == name
    assert (suite.tables == tuple(f"table{number}" for number in range(3, 10))) == (name == "paper")


def test_standard_has_what_the_main_table_of_a_paper_needs():
    attacks = {attack.name: attack for attack in read("standard", eps="4/255").attacks}
    assert list(attacks) == ["pgd-20", "pgd-100", "pgd-100-targeted", "autoattack-standard", "steps", "sweep-eps"]
    assert [attacks[name].eps * 255 for name in list(attacks)[:5]] == pytest.approx([4] * 5)
    assert [attacks[name].targeted for name in list(attacks)[1:3]] == [False, True]


def test_callers_replace_models_data_limit_and_seeds():
    suite = read("quick", checkpoints={"a": "runs/a"}, data="cifar10", root="data", limit=7, seeds=[1, 2])
    assert {name: spec.checkpoint for name, spec in suite.models.items()} == {"a": "runs/a"}
    assert {name: (spec.name, spec.root, spec.limit) for name, spec in suite.data.items()} == {
        "cifar10": ("cifar10", "data", 7)
    }
    assert suite.seeds == (1, 2)


def test_eps_of_a_suite_applies_to_protocols_without_their_own(here):
    assert [attack.eps * 255 for attack in read("suite.toml").attacks] == pytest.approx([16, 4])
    assert [attack.eps * 255 for attack in read("suite.toml", eps=0.5).attacks] == pytest.approx([127.5, 4])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (('name = "mine"', 'nme = "mine"'), "unknown key 'nme'"),
        (("[0, 3]", "[0, 0]"), "seeds = .*none twice"),
        (("[0, 3]", "[-1]"), "seeds = .*between 0"),
        (('name = "targeted"', 'name = "pgd"'), "protocol 'pgd' is given twice"),
        (("madry-cifar10", "madry-cifar11"), "did you mean 'madry-cifar10'"),
        (("[models.plain]", "[models.'a/b']"), "the name becomes a folder"),
        (("[models.plain]", "[models.plain]\ncheckpoint = 'x'"), "give only one of checkpoint and source"),
        (("options = ", "preset = 'none'\nopions = "), "opions"),
        (('source = "nets.py:make"\noptions', "options"), "options needs source, which is missing"),
        (("[data.small]", "[data.small]\nlimit = 'x'"), "limit = 'x'"),
        (('eps = "16/255"', 'eps = "x"'), "eps = 'x'"),
        (('eps = "16/255"', "tables = ['table2']"), "must contain a number from 3 to 9"),
    ],
)
def test_a_wrong_suite_is_refused_with_its_file(here, changed, words):
    text = SUITE.format(more="")
    assert changed[0] in text
    (here / "wrong.toml").write_text(text.replace(*changed, 1))
    with pytest.raises(rlr.InputError, match=rf"wrong.toml: .*{words}"):
        read("wrong.toml")


def test_an_unknown_suite_names_those_that_ship():
    with pytest.raises(rlr.InputError, match=f"no suite 'slow'.*{', '.join(shipped())}"):
        read("slow")


def test_an_empty_suite_is_refused():
    with pytest.raises(rlr.InputError, match=r"give \[models.NAME\]"):
        Suite(name="empty")


# Running a suite


def test_a_suite_gives_the_rows_of_evaluations_one_by_one(here):
    suite = read("suite.toml")
    done = run_all(suite, here / "out")
    assert len(done) == 2 * 2 * 2
    data = rlr.data.load("npz:small.npz", "test")
    for scale, model in ((1.0, "plain"), (3.0, "scaled")):
        net = rlr.load_source("nets.py:make", options={"scale": scale})
        for seed in (0, 3):
            for protocol in suite.attacks:
                folder = here / "out" / "small" / model / f"seed-{seed}" / protocol.name
                result = rlr.evaluate(net, data, protocol, seed=seed, name=model)
                stored = read_evaluation(folder)
                assert stored.record["robust_accuracy"] == result.robust.value
                assert [row.loss for row in stored.rows] == [row.loss for row in result.rows]
                assert (stored.record["seed"], stored.record["model"]) == (seed, model)


def test_a_resumed_suite_repeats_nothing(here, monkeypatch):
    suite = read("suite.toml")
    run_all(suite, here / "out")
    before = all_rows(here / "out")
    removed = here / "out" / "small" / "plain" / "seed-3" / "pgd"
    (removed / LEDGER).unlink()
    (removed / RESULT).unlink()
    kept = next((here / "out").rglob(LEDGER))
    changed = kept.stat().st_mtime_ns
    run_all(suite, here / "out")
    assert all_rows(here / "out") == before
    assert kept.stat().st_mtime_ns == changed


def test_guards_and_hashes_run_once_for_a_model_and_its_images(here, monkeypatch):
    from robust_lr.evaluation import session

    calls = []
    monkeypatch.setattr(session, "weights_hash", lambda model: calls.append("hash") or "0")
    guard = session.run_guards
    monkeypatch.setattr(session, "run_guards", lambda *a, **k: calls.append("guard") or guard(*a, **k))
    for number, job in enumerate(make_jobs(read("suite.toml"), here / "out", device="cpu")):
        job.run(number, lambda event: None)
    assert sorted(calls) == ["guard", "guard", "hash", "hash"]


@pytest.mark.slow
def test_two_models_in_parallel_give_the_same_rows(here):
    run_all(read("suite.toml"), here / "one")
    run_all(read("suite.toml"), here / "two", workers=2)
    assert all_rows(here / "one") == all_rows(here / "two")


@pytest.mark.slow
def test_the_last_shard_merges_all_shards(here):
    text = 'protocols = ["sweep-eps", { protocol = "madry-cifar10", name = "pgd", steps = 3 }]\n'
    (here / "suite.toml").write_text(
        f'{text}[models.net]\nsource = "nets.py:make"\n[data.small]\nname = "npz:small.npz"'
    )
    suite = read("suite.toml", limit=9)
    for job in make_jobs(suite, here / "whole", device="cpu"):
        job.run(0, lambda event: None)
    for index in (2, 1):
        for job in make_jobs(suite, here / "parts", device="cpu", shard=(index, 2)):
            job.run(0, lambda event: None)
    whole = all_rows(here / "whole")
    joined = {folder: rows for folder, rows in all_rows(here / "parts").items() if "shard" not in str(folder)}
    assert joined == whole
    for file in (here / "whole").rglob(CURVE):
        curve = read_curve(file.parent)
        assert read_curve(here / "parts" / file.parent.relative_to(here / "whole"))["points"] == curve["points"]


def test_saved_images_give_a_transfer_matrix_for_each_protocol_and_seed(here, monkeypatch):
    (here / "suite.toml").write_text(SUITE.format(more="").replace("seeds =", "images = true\nseeds ="))
    suite, out = read("suite.toml"), here / "out"
    todo = make_jobs(suite, out, device="cpu")
    assert list(write_matrices(todo)) == []
    run_all(suite, out)
    files = list(write_matrices(todo))
    assert {str(file.relative_to(out / "transfer")) for file in files} == {
        f"small/seed-{seed}/{name}/transfer.json" for seed in (0, 3) for name in ("pgd", "targeted")
    }
    found = json.loads(files[0].read_text())
    assert found["models"] == ["plain", "scaled"]
    for at, model in enumerate(found["models"]):
        record = read_evaluation(out / "small" / model / "seed-0" / "pgd").record
        assert found["scores"][at][at]["accuracy"] == record["robust_accuracy"]
    assert "Transfer" in html(build([out]))

    def forbidden(*args):
        raise AssertionError("a matrix was computed twice")

    monkeypatch.setattr("robust_lr.suites.transfer.transfer", forbidden)
    assert list(write_matrices(todo)) == files
    newer = next(out.rglob(RESULT))
    os.utime(newer, ns=(2**62, 2**62))
    with pytest.raises(AssertionError, match="twice"):
        list(write_matrices(todo))


def test_images_are_saved_only_if_the_suite_says_so(here):
    suite = read("suite.toml")
    run_all(suite, here / "out")
    assert not list((here / "out").rglob("*.safetensors"))
    assert list(write_matrices(make_jobs(suite, here / "out", device="cpu"))) == []


@pytest.mark.slow
def test_a_network_with_a_config_is_trained_for_each_seed(here):
    noise("train.npz", 8, 3, train=48, test=12)
    values = small_run("train.npz", "train.epochs=1")
    (here / "net.toml").write_text('[model]\nname = "resnet18"\n')
    text = 'name = "t"\nseeds = [0, 1]\nprotocols = ["lrnet-untargeted"]\n[data.small]\nname = "npz:train.npz"\n'
    text += f'[models.net]\nconfig = "net.toml"\nset = {[value for value in values if not value.startswith("seed")]}\n'
    (here / "suite.toml").write_text(text)
    suite = read("suite.toml")
    todo = make_jobs(suite, here / "out", device="cpu")
    assert [job.name for job in todo] == ["net, seed 0", "net, seed 1"]
    lines = [line for job in todo for line in estimate(job)]
    assert [line.attack for line in lines] == ["training, 1 epochs", "lrnet-untargeted"] * 2
    assert all(line.seconds > 0 for line in lines)
    for job in todo:
        job.run(0, lambda event: None)
    hashes = {
        seed: read_evaluation(here / "out" / "small" / "net" / f"seed-{seed}" / "lrnet-untargeted").record[
            "weights_sha256"
        ]
        for seed in (0, 1)
    }
    assert hashes[0] != hashes[1]
    assert [line.done for job in todo for line in estimate(job)] == [48, 12, 48, 12]


# Estimates


def test_an_image_needs_at_most_the_passes_that_are_estimated(here):
    data = rlr.data.load("npz:small.npz", "test")
    net = rlr.load_source("nets.py:make")
    for name in ("lrnet-targeted", "madry-cifar10", "square"):
        protocol = rlr.protocols.get(name).with_values(**({"queries": 20} if name == "square" else {}))
        forwards, backwards = count_passes(protocol, data.num_classes)
        for row in rlr.evaluate(net, data, protocol).rows:
            assert row.forwards <= forwards
            assert row.backwards <= backwards


def test_an_estimate_counts_finished_images(here):
    suite = read("suite.toml", seeds=[0])
    todo = make_jobs(suite, here / "out", device="cpu")
    before = [line for job in todo for line in estimate(job)]
    assert [(line.model, line.attack, line.done, line.images) for line in before] == [
        (model, attack, 0, 24) for model in ("plain", "scaled") for attack in ("pgd", "targeted")
    ]
    assert not (here / "out").exists()
    todo[0].run(0, lambda event: None)
    after = [line for job in todo for line in estimate(job)]
    assert [line.done for line in after] == [24, 24, 0, 0]
    assert [line.seconds == 0 for line in after] == [True, True, False, False]


def test_networks_of_a_table_are_estimated_without_training(tmp_path):
    from robust_lr.paper.tables import make_jobs as jobs_of_table
    from robust_lr.paper.tables import read as read_table

    with torch.random.fork_rng():
        job = jobs_of_table(read_table("table9", ("model.width=0.0625",), 10), tmp_path / "table9")[0]
        lines = list(estimate_table(job))
    assert [line.attack for line in lines][1:3] == ["lrnet-targeted", "lrnet-untargeted"]
    assert [line.images for line in lines][:3] == [4000, 10, 10]
    assert all(line.seconds > 0 for line in lines)
    assert not (tmp_path / "table9").exists()
