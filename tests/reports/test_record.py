"""From folders to the record of a report."""

import json
import shutil
import sqlite3

import pytest
from conftest_of_reports import CASCADE, NAMES, PROTOCOLS, SWEEP, images, network

import robust_lr as rlr
from robust_lr.reports.collect import collect
from robust_lr.reports.html import html
from robust_lr.reports.latex import latex
from robust_lr.reports.markdown import markdown
from robust_lr.reports.record import build, winners
from robust_lr.reports.sections.comparison import comparison
from robust_lr.reports.sections.validity import verdict
from robust_lr.reports.tidy import tidy
from robust_lr.results.compare import compare
from robust_lr.utils.statistics import Proportion


def test_evaluations_are_grouped_by_images_protocol_and_seed(report):
    assert [(group.name, group.seed) for group in report.groups] == [
        ("cascade", 0),
        ("pgd", 0),
        ("pgd-targeted", 0),
        ("pgd", 1),
    ]
    for group in report.groups:
        assert sorted(group.members) == sorted(NAMES)
        assert (group.n, group.data, group.apart) == (60, "three_patterns", None)
    assert [[found.protocol["name"] for found in parts] for parts in report.sweeps.values()] == [
        [part.name for part in sorted(SWEEP.parts, key=lambda part: part.name)]
    ] * 3


def test_shares_are_those_of_the_results(report):
    for found in report.evaluations:
        assert found.shares["robust"].value == found.record["robust_accuracy"]
        assert found.shares["success"].n == found.record["denominators"]["attack_success"]


def test_pairs_are_those_of_compare(report, runs):
    group = report.groups[1]
    folders = [found.folder for found in group.members.values()]
    assert group.pairs == compare(folders).pairs


def test_a_winner_is_better_than_every_other_model(report):
    group = report.groups[1]
    best = {name for name, found in group.members.items() if found.shares["robust"].count >= 50}
    assert winners(group, "robust") == best == {NAMES[0]}
    assert winners(group, "robust", level=0.0) == set()


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder, noise in (("a", 0.02), ("b", 0.5)):
        rlr.evaluate(network(noise), images(), PROTOCOLS[0], out=tmp_path / folder, name="net")
    (group,) = build([tmp_path]).groups
    assert sorted(group.members) == [f"net ({tmp_path / 'a'})", f"net ({tmp_path / 'b'})"]
    assert len(group.pairs) == 3


def test_evaluations_that_cannot_be_compared_stay_apart_and_the_difference_is_named(tmp_path):
    for folder, steps in (("a", 4), ("b", 5)):
        changed = PROTOCOLS[0].with_values(steps=steps, record=())
        rlr.evaluate(network(0.1), images(), changed, out=tmp_path / folder, name=folder)
    groups = build([tmp_path]).groups
    assert [list(group.members) for group in groups] == [["a"], ["b"]]
    assert all("protocol.steps is 4 in the first, 5 in the second" in group.apart for group in groups)


def test_two_sets_of_images_with_one_name_have_different_labels(tmp_path):
    for n in (30, 60):
        rlr.evaluate(network(0.1), images(n), PROTOCOLS[0], out=tmp_path / str(n))
    assert sorted(group.data for group in build([tmp_path]).groups) == [
        "three_patterns (30 images)",
        "three_patterns (60 images)",
    ]


def test_shards_are_read_only_if_they_are_not_merged(tmp_path):
    for index in (1, 2):
        out = tmp_path / "run" / f"shard-{index}-of-2"
        rlr.evaluate(network(0.1), images(), PROTOCOLS[0], out=out, shard=(index, 2))
    assert [found.record["shard"] for found in collect([tmp_path]).evaluations] == ["1/2", "2/2"]
    rlr.merge([tmp_path / "run" / f"shard-{index}-of-2" for index in (1, 2)], tmp_path / "run")
    (whole,) = collect([tmp_path]).evaluations
    assert (whole.folder, whole.shares["robust"].n) == (tmp_path / "run", 60)


def test_an_unfinished_evaluation_is_listed_beside_finished_ones_and_refused_alone(tmp_path):
    for name in ("whole", "part"):
        rlr.evaluate(network(0.1), images(), PROTOCOLS[0], out=tmp_path / name, name=name)
    with sqlite3.connect(tmp_path / "part" / "ledger.sqlite") as connection:
        connection.execute("DELETE FROM images WHERE id >= 20")
    connection.close()
    found = collect([tmp_path])
    assert [each.model for each in found.evaluations] == ["whole"]
    assert found.unfinished == ((tmp_path / "part", 20, 60),)
    with pytest.raises(rlr.InputError, match="20 of 60 images"):
        collect([tmp_path / "part"])


@pytest.mark.parametrize("key", ["clean_accuracy", "robust_accuracy", "robust_accuracy_worst_seen", "attack_success"])
def test_a_result_that_does_not_agree_with_its_rows_is_refused(runs, tmp_path, key):
    shutil.copytree(runs / "seed-1", tmp_path / "copy")
    file = next((tmp_path / "copy").rglob("result.json"))
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, key: record[key] + 1 / 60}))
    with pytest.raises(rlr.InputError, match=f"says {key} = .*, but its rows give"):
        collect([tmp_path])


def test_a_folder_without_evaluations_is_refused(tmp_path):
    with pytest.raises(rlr.InputError, match="holds no evaluation"):
        build([tmp_path])


def test_a_cascade_counts_what_each_part_broke(report):
    group = next(group for group in report.groups if group.name == CASCADE.name)
    for found in group.members.values():
        rows = found.evaluation.rows
        broken = sum(row.broken_by is not None for row in rows)
        wrong = sum(row.clean != row.label for row in rows)
        assert Proportion(60 - broken - wrong, 60) == found.shares["robust"]


def test_p_values_are_withheld_from_a_misled_model(runs, tmp_path):
    shutil.copytree(runs / "seed-1", tmp_path / "copy")
    file = next((tmp_path / "copy" / NAMES[0]).rglob("result.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "verdict": "misled", "inflation": None, "bound": None}))
    report = build([tmp_path])
    (group,) = report.groups
    assert winners(group, "robust") == set()
    (table,) = comparison(report).tables
    withheld = [row[-1].text == "withheld" for row in table.rows]
    assert withheld == [NAMES[0] in (row[1].text, row[2].text) for row in table.rows]
    assert sum(withheld) == 2
    assert "nan" not in html(report) + markdown(report) + latex(report) + tidy(report)
    assert verdict(group.members[NAMES[0]].record).tone == "bad"
