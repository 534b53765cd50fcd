import dataclasses
import json

import pytest

from robust_lr import protocols
from robust_lr.protocols import Square
from robust_lr.protocols.pgd import PGD
from robust_lr.utils.errors import InputError

GOOD = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 10}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": 8}, r"eps = 8 is outside \[0, 1\]: pixels are in \[0, 1\]; for 8 of 255 levels write 8/255"),
        (
            {"eps": 300 / 255},
            r"eps = 1\.17647 is outside \[0, 1\]: pixels are in \[0, 1\]; for 8 of 255 levels write 8/255$",
        ),
        ({"eps": -1 / 255}, "eps = -0.0039"),
        ({"eps": float("nan")}, "eps = nan"),
        ({"eps": float("inf")}, "eps = inf"),
        ({"step_size": 2.0}, "step_size = 2 .* write 2/255"),
        ({"step_size": -0.1}, "step_size = -0.1"),
        ({"steps": -1}, "steps = -1: must be a whole number, at least 0"),
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


@pytest.mark.parametrize(
    ("name", "eps", "step_size", "steps", "extra"),
    [
        ("alp-release", 16, 1, 20, {"targeted": True, "target": "least-likely"}),
        ("alp-untargeted-predicted", 16, 1, 20, {"targeted": False, "label": "predicted"}),
        ("xie2019-targeted-10", 16, 1.6, 10, {"targeted": True}),
        ("xie2019-targeted-100", 16, 1, 100, {"targeted": True}),
        ("xie2019-targeted-1000", 16, 1, 1000, {"targeted": True, "record": (100, 1000)}),
        ("madry-imagenet-20", 4, 0.5, 20, {"targeted": False}),
        ("madry-imagenet-100", 4, 0.1, 100, {"targeted": False}),
        ("mi-fgsm", 16, 1.6, 10, {"momentum": 1.0, "start": "clean"}),
        ("sweep-steps", 16, 1, 1000, {"record": (1, 2, 5, 10, 16, 20, 50, 100, 200, 500, 1000)}),
    ],
)
def test_presets_of_the_literature_have_their_values(name, eps, step_size, steps, extra):
    protocol = protocols.get_pgd(name)
    assert (protocol.eps, protocol.steps) == (eps / 255, steps)
    assert protocol.step_size == pytest.approx(step_size / 255, rel=1e-12)
    assert {key: getattr(protocol, key) for key in extra} == extra


@pytest.mark.parametrize(
    ("name", "eps", "norm", "balanced"),
    [
        ("autoattack-standard", 8 / 255, "linf", 0),
        ("autoattack-standard-imagenet", 4 / 255, "linf", 0),
        ("autoattack-standard-l2", 0.5, "l2", 0),
        ("robustbench-imagenet-linf", 4 / 255, "linf", 5000),
    ],
)
def test_autoattack_has_its_official_values(name, eps, norm, balanced):
    cascade = protocols.get(name)
    assert (cascade.eps, cascade.norm, cascade.balanced) == (eps, norm, balanced)
    ce, targeted, fab, square = cascade.parts
    assert (ce.steps, ce.restarts, ce.loss, ce.targets, ce.rho) == (100, 1, "cross-entropy", 0, 0.75)
    assert (targeted.steps, targeted.restarts, targeted.loss, targeted.targets) == (100, 1, "dlr", 9)
    assert (fab.steps, fab.restarts, fab.targets) == (100, 1, 9)
    assert (fab.alpha_max, fab.eta, fab.beta) == (0.1, 1.05, 0.9)
    assert (square.queries, square.p, square.restarts) == (5000, 0.8, 1)
    assert {part.norm for part in cascade.parts} == {norm}
    assert cascade.is_keyed_by_image


def test_every_protocol_and_sweep_prints_and_is_json():
    for name, protocol in (protocols.PROTOCOLS | protocols.SWEEPS).items():
        assert protocol.name == name
        assert protocol.source != "user"
        assert str(protocol)
        assert json.loads(json.dumps(protocol.values())) == protocol.values()
    assert [part.eps * 255 for part in protocols.SWEEPS["sweep-eps"].parts] == pytest.approx(
        [0, 1, 2, 4, 8, 16, 32, 64, 128, 255]
    )


def test_training_takes_pgd_only():
    with pytest.raises(InputError, match="'autoattack-standard' is not PGD"):
        protocols.get_pgd("autoattack-standard")


def test_searches_of_more_queries_than_can_be_keyed_are_refused():
    """Beyond them, random numbers of one image would be those of another."""
    with pytest.raises(InputError, match=r"restarts = 3356 of 5000 queries: at most 16777216 are keyed in all"):
        Square(eps=0.1, restarts=3356)
    assert Square(eps=0.1, restarts=3354).restarts == 3354
