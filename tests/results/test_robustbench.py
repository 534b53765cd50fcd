from dataclasses import replace

import pytest
import torch

import robust_lr as rlr
from robust_lr.protocols import APGD, FAB, Cascade, Square
from robust_lr.results.robustbench import find_reservations, model_info
from robust_lr.results.stored import read_evaluation
from robust_lr.utils.errors import InputError

#: the names of the public files' fields, in their order
FIELDS = [
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
    "clean_acc", "reported", "autoattack_acc",
]  # fmt: skip
ABOUT = {
    "link": "https://example.org", "name": "A title", "authors": "A, B", "additional_data": False,
    "venue": "arXiv 2026", "number_forward_passes": 1, "dataset": "cifar10", "architecture": "ResNet-26",
}  # fmt: skip


def evaluation(folder, protocol):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    rlr.evaluate(model, rlr.data.load("fashion-mnist-mini", "test").take(12), protocol, out=folder)
    return read_evaluation(folder)


def test_an_evaluation_becomes_an_entry_with_all_fields(tmp_path):
    eps = 8 / 255
    parts = (
        APGD(name="apgd-ce", eps=eps, steps=1),
        APGD(name="apgd-t", eps=eps, steps=1, loss="dlr", targets=1),
        FAB(name="fab-t", eps=eps, steps=1, targets=1),
        Square(name="square", eps=eps, queries=1),
    )
    found = evaluation(tmp_path / "run", Cascade(parts=parts))
    info = model_info(found, **ABOUT)
    assert list(info) == FIELDS
    assert info["eps"] == "8/255"
    for key in ("clean_acc", "reported", "autoattack_acc"):
        assert info[key] == f"{float(info[key]):.2f}"
    assert info["clean_acc"] == f"{100 * found.record['clean_accuracy']:.2f}"
    assert model_info(found, **ABOUT, reported="1.5")["reported"] == "1.5"
    reservations = find_reservations(found, "cifar10")
    assert "the evaluation has 12 images, the leaderboard for cifar10 10,000" in reservations
    assert "square has queries = 1, the official value is 5000" in reservations
    assert any("not for 'mnist'" in line for line in find_reservations(found, "mnist"))
    official = rlr.protocols.get("autoattack-standard").values()
    record = {**found.record, "n": 10_000, "protocol": official}
    assert find_reservations(replace(found, record=record), "cifar10") == []


def test_other_protocols_cannot_be_exported(tmp_path):
    found = evaluation(tmp_path / "run", rlr.protocols.PGD(eps="8/255", step_size="2/255", steps=1))
    with pytest.raises(InputError, match="RobustBench takes AutoAttack 'standard'"):
        model_info(found, **ABOUT)


def test_the_entry_has_the_verdict_and_misled_evaluations_are_refused(tmp_path):
    parts = tuple(
        kind(name=name, eps=8 / 255, **values)
        for kind, name, values in (
            (APGD, "apgd-ce", {"steps": 1}),
            (APGD, "apgd-t", {"steps": 1, "loss": "dlr", "targets": 1}),
            (FAB, "fab-t", {"steps": 1, "targets": 1}),
            (Square, "square", {"queries": 1}),
        )
    )
    found = evaluation(tmp_path / "run", Cascade(parts=parts))
    for verdict, words in (("sound", "robust-lr: sound, because"), ("weak", "; robust accuracy is at most 12.50")):
        record = {**found.record, "verdict": verdict, "verdict_reason": "because", "bound": 0.125}
        info = model_info(replace(found, record=record), **ABOUT)
        assert words in info["footnote"]
    record = {**found.record, "verdict": "misled", "verdict_reason": "because", "bound": 0.125}
    with pytest.raises(InputError, match=r"is misled \(because\)"):
        model_info(replace(found, record=record), **ABOUT)
    assert model_info(replace(found, record=record), **ABOUT, allow_misled=True)["footnote"]
