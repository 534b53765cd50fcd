"""One source of eps: the radius that a library's class attacks in is the protocol's, at any eps."""

import pytest
import torch

import robust_lr as rlr
from robust_lr.evaluation import library_attacks
from robust_lr.protocols import PROTOCOLS, Library
from robust_lr.utils.errors import InputError

LIBRARY = [protocol for protocol in PROTOCOLS.values() if isinstance(protocol, Library)]
OTHERS = [
    Library(attack=name, eps=8 / 255, norm=norm, name=f"{name}-{norm}", options=options)
    for name, norm, options in (
        ("PGD", "linf", {"steps": 2}),
        ("PGDL2", "l2", {"steps": 2}),
        ("FAB", "linf", {"steps": 2, "multi_targeted": True}),
        ("FAB", "l2", {"steps": 2, "multi_targeted": True}),
        ("APGD", "l2", {"steps": 2}),
        ("Square", "linf", {"n_queries": 2}),
        ("PIFGSM", "linf", {"num_iter_set": 2}),
    )
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(196, 3)
    )


@pytest.mark.parametrize("protocol", [*LIBRARY, *OTHERS], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("eps", [1 / 255, 32 / 255])
def test_the_class_attacks_in_the_protocol_s_ball(monkeypatch, model, protocol, eps):
    seen = {}
    torchattack = library_attacks.torchattack

    def watched(name, model, x, labels, **values):
        seen.update(values)
        return torchattack(name, model, x, labels, **values)

    monkeypatch.setattr(library_attacks, "torchattack", watched)
    generator = torch.Generator().manual_seed(0)
    data = rlr.data.from_arrays(torch.rand(3, 3, 16, 16, generator=generator).numpy(), [0, 1, 2])
    result = rlr.evaluate(model, data, protocol.at(eps), compute_batch=4)
    assert result.protocol["eps"] == eps
    assert result.max_distance <= eps + 1e-5
    if seen:  # some image was right when clean
        known = [key for key in ("eps", "max_epsilon") if key in seen]
        assert [seen[key] for key in known] == [eps] * len(known)
        assert bool(known) == (protocol.attack not in ("CW", "DeepFool"))
        assert seen.get("norm", "") in ("", {"linf": "Linf", "l2": "L2"}[protocol.norm])


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        (Library(attack="PGD", eps=0.5, norm="l2"), "norm = 'l2': torchattacks' PGD takes its eps in Linf"),
        (Library(attack="PGDL2", eps=0.5), "set norm = 'l2'"),
        (Library(attack="PDG", eps=0.5), "did you mean 'PGD'"),
        (Library(attack="PGD", eps=0.5, options={"stepz": 1}), "did you mean 'steps'"),
    ],
)
def test_what_only_the_library_knows_is_checked_before_work_starts(model, protocol, words):
    with pytest.raises(InputError, match=words):
        rlr.evaluate(model, rlr.data.from_arrays(torch.rand(3, 3, 16, 16).numpy(), [0, 1, 2]), protocol)
