import itertools

import pytest

from robust_lr.protocols import PGD, PROTOCOLS, SWEEPS, Cascade, Library, Sweep, get
from robust_lr.protocols.changes import apply_grid, parse_counts, parse_distances, with_changes
from robust_lr.protocols.custom import Custom
from robust_lr.utils.errors import InputError


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("fab-t", {"eps": "4/255"}, "fab-t,eps=4_255"),
        ("madry-cifar10", {"eps": 0.01, "steps": 3}, "madry-cifar10,eps=0.01,steps=3"),
        ("madry-cifar10", {"record": [1, 20]}, "madry-cifar10,record=1+20"),
        ("cw-l2", {"options": {"steps": 9}}, "cw-l2,options.steps=9"),
        ("autoattack-standard", {"eps": "4/255", "first": 10}, "autoattack-standard,eps=4_255,first=10"),
        ("madry-cifar10", {"eps": "8/255"}, "madry-cifar10"),  # its own value
        ("madry-cifar10", {"steps": 3, "name": "mine"}, "mine"),
    ],
)
def test_a_changed_protocol_is_named_after_its_changes(name, changes, expected):
    assert with_changes(get(name), changes).name == expected


def test_names_of_different_changes_differ():
    base = get("madry-cifar10")
    changes = [
        {"eps": eps, "step_size": step, "steps": steps}
        for eps, step, steps in itertools.product((4 / 255, 4.0001 / 255, 0.0157), (1 / 255, 0.0039), (1, 11))
    ]
    assert len({with_changes(base, change).name for change in changes}) == len(changes)
    long = with_changes(base, {"record": list(range(20)), "loss": "dlr", "momentum": 0.123456789, "restarts": 1000})
    assert len(long.name) < 255
    assert "/" not in long.name


@pytest.mark.parametrize("name", [name for name, protocol in PROTOCOLS.items() if protocol.eps])
def test_every_protocol_moves_to_another_eps_as_a_whole(name):
    moved = with_changes(PROTOCOLS[name], {"eps": 0.011})
    assert moved.eps == 0.011
    assert {part.eps for part in moved.attacks()} == {0.011}
    assert "eps" not in getattr(moved, "options", {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epz": 1}, "did you mean 'eps'"),
        ({"eps": "8/0"}, r"attack\.eps = '8/0': a number or a fraction"),
        ({"steps": "3"}, r"attack\.steps = '3': a whole number"),
    ],
)
def test_changes_that_make_no_sense_are_named(changes, words):
    with pytest.raises(InputError, match=words):
        with_changes(get("madry-cifar10"), changes)


def test_fractions_are_distances_in_python_too():
    assert PGD(eps="8/255", step_size="2/255", steps=1) == PGD(eps=8 / 255, step_size=2 / 255, steps=1)
    with pytest.raises(InputError, match="eps = 'eight'"):
        PGD(eps="eight", step_size=0.1, steps=1)


def test_the_protocol_s_eps_is_the_only_one_of_a_library_attack():
    assert Library(attack="PGD", eps=0.1, options={"eps": 0.1, "norm": "Linf", "steps": 3}).options == {"steps": 3}
    for options in ({"eps": 0.2}, {"max_epsilon": 0.2}, {"norm": "L2"}, {"seed": 3}):
        with pytest.raises(InputError, match=f"options.{next(iter(options))}"):
            Library(attack="PGD", eps=0.1, options=options)


def test_grids_are_read_as_people_write_them():
    assert parse_distances("0,2,4,8/255") == [0, 2 / 255, 4 / 255, 8 / 255]
    assert parse_distances("0.5, 1") == [0.5, 1]
    assert parse_counts("1,10,100") == [1, 10, 100]
    for text in ("", "a", "8/0", "4,2/255", "1,1"):
        with pytest.raises(InputError, match="`eps`"):
            parse_distances(text)
    for text in ("", "1.5", "-1", "2,1"):
        with pytest.raises(InputError, match="`steps`"):
            parse_counts(text)


def test_a_grid_of_eps_scales_the_steps_of_pgd():
    sweep = apply_grid(SWEEPS["sweep-eps"], eps="0,2,4,8/255")
    assert isinstance(sweep, Sweep)
    assert [part.eps for part in sweep.parts] == [0, 2 / 255, 4 / 255, 8 / 255]
    assert [part.step_size for part in sweep.parts] == pytest.approx([2.5 * part.eps / 40 for part in sweep.parts])
    assert len({part.name for part in sweep.parts}) == 4
    cascades = apply_grid(get("autoattack-standard"), eps="1,2/255")
    assert all(isinstance(part, Cascade) for part in cascades.parts)
    assert apply_grid(get("fab-t"), eps="4/255").name == "fab-t,eps=4_255"
    from_zero = apply_grid(Custom(function=lambda *given: given[1], eps=0.0), eps="0,8/255")  # it has no step to scale
    assert [part.eps for part in from_zero.parts] == [0, 8 / 255]


def test_a_grid_of_steps_is_one_trajectory_of_pgd_and_several_runs_of_others():
    one = apply_grid(get("madry-cifar10"), steps="1,10,100")
    assert (one.steps, one.record) == (100, (1, 10, 100))
    several = apply_grid(get("apgd-ce"), steps="5,10")
    assert [part.steps for part in several.parts] == [5, 10]
    for base, words in ((SWEEPS["madry-imagenet"], "fixes its own"), (get("cw-l2"), "no number of steps")):
        with pytest.raises(InputError, match=words):
            apply_grid(base, steps="1,2")
    with pytest.raises(InputError, match="one of them"):
        apply_grid(get("madry-cifar10"), steps="1,2", eps="1/255")
