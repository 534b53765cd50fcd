import pytest
import torch

import robust_lr as rlr
from robust_lr.protocols import APGD, FAB, Cascade, Square
from robust_lr.results.robustbench import model_info
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


def test_other_protocols_make_no_entry(tmp_path):
    found = evaluation(tmp_path / "run", rlr.protocols.PGD(eps="8/255", step_size="2/255", steps=1))
    with pytest.raises(InputError, match="RobustBench takes AutoAttack 'standard'"):
        model_info(found, **ABOUT)
