"""CUDA graphs for the steps of an attack: all but the recording itself, which needs a GPU."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import robust_lr as rlr
from robust_lr.evaluation import continuous_batching, harness, step_graph
from robust_lr.evaluation.guards import GUARDS
from robust_lr.evaluation.step_graph import WARM_UPS, DelayedLook, GraphedStep, Recording, are_graphs_wanted
from robust_lr.protocols import APGD, Cascade, Square
from robust_lr.protocols.fab import FAB
from robust_lr.protocols.minimal_norm import DDN, FMN
from robust_lr.protocols.pgd import PGD
from robust_lr.results.ledger import read
from robust_lr.utils.errors import InputError

EPS = 8 / 255
WORST = PGD(eps=EPS, step_size=2 / 255, steps=8, criterion="worst")
PROTOCOLS = {
    "worst": WORST,
    "aimed": dataclasses.replace(WORST, targeted=True, eps=24 / 255, restarts=2),
    "momentum": PGD(eps=1.0, step_size=0.3, steps=8, norm="l2", momentum=0.5, criterion="last", record=(0, 3)),
    "cascade": Cascade(
        parts=(
            APGD(name="apgd-ce", eps=EPS, steps=6),
            APGD(name="apgd-t", eps=EPS, steps=6, loss="dlr", targets=3),
            Square(eps=EPS, queries=20),
        )
    ),
    "fab": FAB(eps=EPS, steps=6),
    "fmn": FMN(eps=EPS, steps=6),
    "ddn": DDN(eps=1.0, steps=6),
}
OPTIONS = {"compute_batch": 8, "allow": tuple(GUARDS), "end_at_cycles": False, "processes": 0}


@pytest.fixture
def data():
    return rlr.data.load("fashion-mnist-mini", "test").take(30)


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    x, y, _ = data.batch(torch.arange(30))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def rows_of(folder):
    return [dataclasses.replace(row, seconds=0) for row in read(folder / "ledger.sqlite")]


class ForbidHostReads(TorchDispatchMode):
    """Fails where the host reads a tensor, or where a size depends on its values: no graph can hold that."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name()
        assert name not in {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}, name
        return function(*arguments, **(options or {}))


def record_on_cpu(step, rows):
    """Stands in for a graph: its inputs and outputs stay where they are, and the recorded step writes them again."""
    inputs = {name: column.clone() for name, column in rows.items()}
    with ForbidHostReads():
        outputs = {name: column.clone() for name, column in step(inputs).items()}

    def replay():
        for name, column in step(inputs).items():
            outputs[name].copy_(column)

    return Recording(inputs, outputs, replay)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_rows_are_the_same_with_recorded_steps_and_delayed_looks(tmp_path, data, model, name, monkeypatch):
    recorded, graphs = [], False

    def record(step, rows):
        recorded.append(len(rows["id"]))
        return record_on_cpu(step, rows)

    def attack_as_on_a_gpu(part, number, source, bench):
        return attack_pool(part, number, source, dataclasses.replace(bench, graphs=graphs, patience=2))

    attack_pool = harness.attack_pool
    monkeypatch.setattr(continuous_batching, "record_cuda_graph", record)
    monkeypatch.setattr(harness, "attack_pool", attack_as_on_a_gpu)
    for graphs in (False, True):
        assert not recorded
        rlr.evaluate(model, data, PROTOCOLS[name], out=tmp_path / str(graphs), **OPTIONS)
    assert recorded
    assert rows_of(tmp_path / "True") == rows_of(tmp_path / "False")


def test_steps_are_recorded_after_warm_ups_for_each_size(monkeypatch):
    taken, recorded = [], []

    def step(rows):
        taken.append(len(rows["x"]))
        return {"x": rows["x"] + 1}

    def record(step, rows):
        recorded.append(len(rows["x"]))
        return record_on_cpu(step, rows)

    monkeypatch.setattr(step_graph, "MAX_RECORDINGS", 1)
    graphed = GraphedStep(step, record)
    for turn in range(WARM_UPS + 3):
        found = [graphed({"x": torch.full((2,), float(value))})["x"] for value in (turn, 10 * turn)]
        assert [each.tolist() for each in found] == [[turn + 1.0] * 2, [10 * turn + 1.0] * 2]  # the first is kept
    assert recorded == [2]
    for _ in range(WARM_UPS + 2):
        graphed({"x": torch.zeros(3)})
    assert recorded == [2]  # no more than that many are kept
    assert taken.count(3) == WARM_UPS + 2


def test_a_look_tells_what_was_decided_at_the_look_before():
    delayed = DelayedLook()
    decided = torch.tensor([True, False, True])
    assert not delayed.look(decided, torch.tensor([4, 5, 6])).any()
    decided.fill_(False)  # what was copied stays
    assert delayed.look(torch.ones(3, dtype=torch.bool), torch.tensor([6, 7, 4])).tolist() == [True, False, True]
    assert delayed.look(torch.zeros(2, dtype=torch.bool), torch.tensor([8, 7])).tolist() == [False, True]


def test_the_environment_switches_graphs_on_for_gpus_alone(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv(step_graph.VARIABLE, raising=False)
    assert not are_graphs_wanted(gpu)
    for value, wanted in {"": False, "0": False, "1": True}.items():
        monkeypatch.setenv(step_graph.VARIABLE, value)
        assert are_graphs_wanted(gpu) == wanted
        assert not are_graphs_wanted(cpu)
    monkeypatch.setenv(step_graph.VARIABLE, "yes")
    with pytest.raises(InputError, match="must be 1, for CUDA graphs, or 0"):
        are_graphs_wanted(cpu)
