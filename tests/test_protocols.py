import dataclasses
import json

import pytest

from robust_lr import protocols
from robust_lr.errors import InputError
from robust_lr.protocols import PGD

GOOD = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 10}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": 8}, r"eps = 8 is outside \[0, 1\]: pixels are in \[0, 1\]; for 8 of 255 levels write 8/255"),
        ({"eps": -1 / 255}, "eps = -0.0039"),
        ({"eps": float("nan")}, "eps = nan"),
        ({"eps": float("inf")}, "eps = inf"),
        ({"step_size": 2.0}, "step_size = 2 .* write 2/255"),
        ({"step_size": -0.1}, "step_size = -0.1"),
        ({"steps": -1}, "steps = -1: must be a whole number, 0 or more"),
        ({"steps": 1.5}, "steps = 1.5: must be a whole number"),
        ({"restarts": 0}, "restarts = 0: must be a whole number, at least 1"),
        ({"restarts": 1.5}, "restarts = 1.5"),
        ({"start": "uniforn"}, "unknown start 'uniforn': did you mean 'uniform'"),
        ({"target": "random"}, "unknown target 'random': .*uniform, least-likely"),
        ({"target": "least-likely"}, "target = 'least-likely' is for targeted attacks"),
        ({"start": "clean", "restarts": 2}, "restarts = 2 from the clean image are all the same"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        PGD(**(GOOD | values))
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PGD(**GOOD), **values)


def test_the_ends_of_every_range_are_allowed():
    for values in ({"eps": 0}, {"eps": 1}, {"step_size": 0}, {"step_size": 1}, {"steps": 0}, {"start": "clean"}):
        PGD(**(GOOD | values))


def test_a_protocol_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PGD(**GOOD).eps = 0.5


def test_values_are_complete_and_json():
    values = PGD(**GOOD, targeted=True).values()
    assert values.keys() == {"attack", *(field.name for field in dataclasses.fields(PGD))} - {"label"}
    assert json.loads(json.dumps(values)) == values
    assert {key: values[key] for key in ("attack", "norm", "loss", "criterion")} == {
        "attack": "pgd", "norm": "linf", "loss": "cross-entropy", "criterion": "last",
    }  # fmt: skip
    assert values["eps"] == 8 / 255
    assert "target" not in PGD(**GOOD).values()


def test_a_protocol_prints_as_people_write_it():
    assert str(PGD(**GOOD)) == "untargeted PGD, eps 8/255, step 2/255, 10 steps, uniform start"
    many = PGD(**(GOOD | {"eps": 0.3}), targeted=True, target="least-likely", restarts=3)
    assert str(many) == "targeted (least-likely) PGD, eps 76.5/255, step 2/255, 10 steps, uniform start, 3 restarts"


@pytest.mark.parametrize(
    ("name", "eps", "step_size", "steps", "targeted", "start"),
    [
        ("none", 0, 0, 0, False, "clean"),
        ("lrnet-train", 16, 1, 16, True, "uniform"),
        ("lrnet-targeted", 16, 1, 16, True, "uniform"),
        ("lrnet-untargeted", 16, 1, 16, False, "uniform"),
        ("madry-cifar10", 8, 2, 20, False, "uniform"),
    ],
)
def test_named_protocols_have_the_published_values(name, eps, step_size, steps, targeted, start):
    protocol = protocols.get(name)
    assert protocol.name == name
    assert (protocol.eps, protocol.step_size, protocol.steps) == (eps / 255, step_size / 255, steps)
    assert (protocol.targeted, protocol.start, protocol.target, protocol.restarts) == (targeted, start, "uniform", 1)
    assert protocol.source != "user"


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(InputError, match=r"unknown protocol 'madry': .*lrnet-targeted.*madry-cifar10"):
        protocols.get("madry")
