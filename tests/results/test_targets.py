import dataclasses
import json

import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.evaluation.guards import GUARDS
from robust_lr.results.stored import read_evaluation
from robust_lr.results.targets import Targets, draw_targets, load_targets
from robust_lr.utils.errors import InputError

GOOD = {"num_classes": 4, "data": "some", "images_sha256": "ab", "seed": None}


@pytest.fixture
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(50)


def test_drawn_targets_are_those_of_an_evaluation_and_survive_the_disk(data, tmp_path):
    targets = draw_targets(data, seed=3)
    targets.save(tmp_path / "a" / "targets.json")
    loaded = load_targets(tmp_path / "a" / "targets.json")
    assert loaded == targets
    assert (loaded.seed, loaded.data, loaded.images_sha256) == (3, data.name, rlr.data.content_hash(data))
    assert loaded.sha256 == targets.sha256 != draw_targets(data, seed=4).sha256
    expected = rlr.attacks.targets.uniform(data.labels, data.ids, 10, seed=3)
    assert torch.equal(loaded.of(data.ids, data.labels), expected)


def test_a_subset_in_any_order_has_the_same_targets(data):
    targets = draw_targets(data)
    some = data.subset([7, 3, 44])
    assert torch.equal(targets.of(some.ids, some.labels), targets.of(data.ids, data.labels)[[7, 3, 44]])


def test_images_without_a_target_are_named(data):
    targets = draw_targets(data.take(48))
    with pytest.raises(InputError, match=rf"no target for image {int(data.ids[48])} \(2 of 50 have none\)"):
        targets.of(data.ids, data.labels)


def test_targets_of_other_images_are_refused(data):
    with pytest.raises(InputError, match=rf"image {int(data.ids[0])} was chosen for label .* belong to other images"):
        draw_targets(data).of(data.ids, (data.labels + 1) % 10)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(5, 2, 2)], "target 2 of image 5 is its true class"),
        ([(5, 2, 4)], "target 4 of image 5 is not a class: classes are 0 to 3"),
        ([(5, 2, -1)], "target -1 of image 5"),
        ([(5, 4, 2)], "label 4 of image 5: labels must be 0 to 3"),
        ([(-5, 1, 2)], "image -5"),
        ([(5, 1, 2), (5, 1, 3)], "an id appears twice"),
        ([], "targets: empty"),
    ],
)
def test_impossible_targets_are_refused_also_from_a_file(rows, words, tmp_path):
    with pytest.raises(InputError, match=words):
        Targets(rows=tuple(rows), **GOOD)
    (tmp_path / "targets.json").write_text(json.dumps({**GOOD, "targets": rows}))
    with pytest.raises(InputError, match=rf"targets\.json: .*{words}"):
        load_targets(tmp_path / "targets.json")


class Bright(nn.Module):
    """Classify by brightness into any number of classes."""

    def __init__(self, classes):
        super().__init__()
        self.places = torch.linspace(0, 1, classes)

    def forward(self, x):
        return -50 * (x.mean((1, 2, 3))[:, None] - self.places).square()


AIMED = rlr.protocols.PGD(eps=0.1, step_size=0.05, steps=2, targeted=True)


@pytest.mark.parametrize(("classes", "target"), [(20, 15), (10, 9)])
def test_targets_outside_the_model_s_classes_are_refused_before_anything_is_written(data, tmp_path, classes, target):
    rows = [(*row[:2], target if row[1] != target else 0) for row in draw_targets(data).rows]
    targets = dataclasses.replace(draw_targets(data), rows=tuple(rows), num_classes=classes)
    few = data.subset([i for i in range(50) if data.labels[i] < 7])
    id_ = int(few.ids[0])
    with pytest.raises(InputError, match=rf"target {target} of image {id_} is not a class: classes are 0 to 6"):
        rlr.evaluate(Bright(7), few, AIMED, targets=targets, out=tmp_path / "new", allow=GUARDS)
    assert not (tmp_path / "new").exists()


def test_targets_among_more_classes_than_the_images_have_can_be_saved(data, tmp_path):
    rlr.evaluate(Bright(40), data, AIMED, out=tmp_path, allow=GUARDS)
    targets = read_evaluation(tmp_path).targets()
    assert targets.num_classes == 40
    assert max(target for _, _, target in targets.rows) >= 10
    again = rlr.evaluate(Bright(40), data, AIMED, targets=targets, allow=GUARDS)
    assert again.hashes["targets"] == targets.sha256


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        ("{", "not valid JSON"),
        ("[]", "is not a file of targets"),
        ("{}", "is not a file of targets .*'targets'"),
        ({"targets": [[1, 2]]}, "is not a file of targets"),
        ({"targets": [[1, 2, 3.0]]}, r"3\.0 is not a 64-bit integer"),
        ({"targets": [[1, True, 3]]}, "True is not a 64-bit integer"),
        ({"targets": [[1, "2", 3]]}, "'2' is not a 64-bit integer"),
        ({"targets": 3}, "is not a file of targets"),
        ({"targets": [[1, 2, 10**30]]}, "0 is not a 64-bit integer"),
        ({"targets": [[1, 2, 3]], "targets_sha256": "00"}, "was changed after it was saved"),
    ],
)
def test_files_that_hold_no_targets_are_named(content, words, tmp_path):
    file = tmp_path / "targets.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps({**GOOD, **content}))
    with pytest.raises(InputError, match=words) as raised:
        load_targets(file)
    assert "targets.json" in str(raised.value)


def test_edited_targets_are_accepted_without_their_hash(data, tmp_path):
    file = tmp_path / "targets.json"
    draw_targets(data).save(file)
    record = json.loads(file.read_text())
    id_, label, target = record["targets"][0]
    record["targets"][0][2] = next(c for c in range(10) if c not in (label, target))
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match="remove its targets_sha256"):
        load_targets(file)
    del record["targets_sha256"]
    file.write_text(json.dumps(record))
    assert load_targets(file).rows[0] == tuple(record["targets"][0])
    assert dataclasses.replace(load_targets(file), seed=9).rows[0][0] == id_
