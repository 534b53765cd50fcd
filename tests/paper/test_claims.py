import pytest
import torch

from robust_lr.paper import tables
from robust_lr.paper.claims import Claim, Outcomes, judge, read_claims
from robust_lr.paper.report import describe_rates
from robust_lr.paper.stronger import read_stronger
from robust_lr.utils.errors import InputError

LABELS, ATTACKS = ["A", "B"], ["clean", "pgd"]


def outcomes(first, second, runs=5, images=400, seed=0):
    """Networks that are right with these probabilities, independently."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        label: (torch.rand(runs, images, generator=generator) < share).double()
        for label, share in {"A": first, "B": second}.items()
    }
    return Outcomes(
        {
            (label, "adversarial", "pgd"): {"clean": torch.ones(runs, images), "robust": right, "worst-seen": right}
            for label, right in values.items()
        }
    )


def claim(**changes):
    (found,) = read_claims([{"first": "A", "second": "B", "attack": "pgd", **changes}], LABELS, ATTACKS)
    return found


def test_a_claim_is_confirmed_contradicted_or_not_decided():
    for shares, word in [((0.6, 0.4), "confirmed"), ((0.4, 0.6), "contradicted"), ((0.5, 0.49), "not decided")]:
        (verdict,) = judge([claim(paper=20.0)], outcomes(*shares))
        assert verdict.outcome == word
        assert verdict.describe().startswith(word)
    (verdict,) = judge([claim(paper=20.0)], outcomes(0.6, 0.4))
    assert "+20.0 is inside the interval" in verdict.describe()
    (verdict,) = judge([claim(paper=60.0)], outcomes(0.6, 0.4))
    assert "+60.0 is outside the interval" in verdict.describe()


def test_the_sample_sizes_that_would_decide_are_named():
    (verdict,) = judge([claim()], outcomes(0.5, 0.47, runs=3, images=200))
    assert verdict.outcome == "not decided"
    assert "seeds" in verdict.describe() or "images" in verdict.describe()
    record = verdict.to_dict()
    assert record["verdict"] == "not decided"
    assert len(record["per_run"]) == 3


def test_one_training_run_decides_nothing():
    (verdict,) = judge([claim()], outcomes(0.9, 0.1, runs=1))
    assert verdict.outcome == "not decided"
    assert "single training run" in verdict.describe()
    assert verdict.to_dict()["interval"] is None


def test_p_values_are_corrected_for_the_number_of_claims():
    found = outcomes(0.55, 0.45, runs=3, images=100)
    (alone,) = judge([claim()], found)
    together = judge([claim(), Claim("B", "A", "pgd", "robust", None)], found)
    assert together[0].p_holm == pytest.approx(min(1.0, 2 * alone.p_holm))


def test_clean_accuracy_can_be_claimed():
    (verdict,) = judge([claim(attack="clean")], outcomes(0.9, 0.1))
    assert verdict.estimate.value == 0


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (3, "claims = 3"),
        ([3], "claims"),
        ([{"first": "A"}], "second"),
        ([{"first": "A", "second": "C", "attack": "pgd"}], "'C'"),
        ([{"first": "A", "second": "B", "attack": "fgsm"}], "'fgsm'"),
        ([{"first": "A", "second": "B", "attack": "pgd", "figure": "best"}], "'best'"),
        ([{"first": "A", "second": "B", "attack": "pgd", "papr": 3}], "'papr'"),
        ([{"first": "A", "second": "B", "attack": "pgd", "paper": float("nan")}], "finite"),
    ],
)
def test_mistakes_in_claims_are_named(entries, words):
    with pytest.raises(InputError, match=words):
        read_claims(entries, LABELS, ATTACKS)


def test_stronger_attacks_are_protocols_with_changes_or_sweeps():
    pgd, *parts = read_stronger(
        [
            {"name": "pgd-9", "protocol": "lrnet-untargeted", "steps": 9, "limit": 7, "runs": 1, "check": "off"},
            {"protocol": "sweep-eps", "limit": 5, "check": "thorough"},
        ]
    )
    assert (pgd.name, pgd.protocol.steps, pgd.limit, pgd.runs, pgd.check) == ("pgd-9", 9, 7, 1, "off")
    assert len(parts) == 10
    assert {(part.limit, part.check) for part in parts} == {(5, "thorough")}
    assert parts[-1].name == "sweep-eps-eps-255"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"limit": 3}], "no protocol"),
        ([{"protocol": "lrnet"}], "'lrnet'"),
        ([{"protocol": "sweep-eps", "steps": 3}], "a sweep takes only limit, runs and check"),
        ([{"protocol": "lrnet-targeted", "limit": -1}], "limit"),
        ([{"protocol": "lrnet-targeted", "runs": "all"}], "runs"),
        ([{"protocol": "lrnet-targeted", "check": "of"}], "did you mean 'off'"),
        ([{"protocol": "lrnet-targeted"}, {"protocol": "lrnet-targeted"}], "twice"),
        ("pgd", "stronger"),
    ],
)
def test_mistakes_in_stronger_attacks_are_named(entries, words):
    with pytest.raises(InputError, match=words):
        read_stronger(entries)


def test_a_table_replaces_values_of_its_base(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "table9"\nseeds = 4\n[model]\nwidth = 0.5\n')
    base, mine = tables.read("table9"), tables.read(tmp_path / "mine.toml")
    assert (mine.seeds, mine.limit, len(mine.claims)) == (4, base.limit, len(base.claims))
    assert {row.configs["regular"].model["width"] for row in mine.rows} == {0.5}
    assert {row.configs["regular"].model["stem"] for row in mine.rows} == {"stride2"}
    assert tables.read(tmp_path / "mine.toml", seeds=2, limit=9).seeds == 2
    (tmp_path / "other.toml").write_text(f'base = "{tmp_path / "mine.toml"}"\n')
    with pytest.raises(InputError, match="has a base itself"):
        tables.read(tmp_path / "other.toml")
    with pytest.raises(InputError, match="seeds = 0"):
        tables.read("table9", seeds=0)
    with pytest.raises(InputError, match=r"regular\.runs = -1"):
        tables.read("table9", ["regular.runs=-1"])


def test_every_training_run_is_a_separate_job(tmp_path):
    table = tables.read("table9", seeds=3)
    jobs = tables.make_jobs(table, tmp_path)
    assert len(jobs) == len({job.folder for job in jobs}) == 12
    assert [job.config.seed for job in jobs if job.regime == "regular"] == [0, 0, 0]
    assert {job.config.seed for job in jobs} == {0, 1, 2}
    names = {job.name: [attack.name for attack in job.attacks] for job in jobs}
    assert "eps-8" in names["LR-Net-26 adversarial, seed 0"]
    assert "eps-8" not in names["LR-Net-26 adversarial, seed 1"]
    assert "autoattack" in names["LR-Net-26 adversarial, seed 2"]
    assert "pgd-100" in names["LR-Net-26 adversarial, seed 2"]
    assert names["LR-Net-26 regular, seed 0"] == ["lrnet-targeted", "lrnet-untargeted"]


@pytest.mark.parametrize("scale", ["hour", "gpu", "imagenet"])
def test_every_scale_has_a_table_of_the_same_rows_and_claims(scale):
    base, table = tables.read("table9"), tables.read(f"table9/{scale}")
    assert [row.label for row in table.rows] == [row.label for row in base.rows]
    assert [row.paper for row in table.rows] == [row.paper for row in base.rows]
    assert table.claims == base.claims
    assert {attack.name for attack in table.stronger} >= {"pgd-100", "autoattack"}


def test_the_table_says_how_learning_rates_were_chosen():
    table = tables.read("table9")
    assert describe_rates(table, "adversarial") == (
        "Learning rates of adversarial training, each the best of 0.05, 0.1, 0.2 and 0.4 on held-out training images, "
        "mean of five runs: ResNet-26 0.2, ResNet-50 0.4, LR-Net-26 0.2. "
    )
    assert describe_rates(table, "regular") == ""
    assert describe_rates(tables.read("table9", ["adversarial.rate_rule=mine"]), "adversarial").startswith(
        "Learning rates of adversarial training, each mine: "
    )
    with pytest.raises(InputError, match=r"adversarial\.rate_rule"):
        tables.read("table9", ["adversarial.rate_rule=3"])


@pytest.mark.parametrize("scale", ["gpu", "imagenet"])
def test_a_scale_whose_rates_were_not_chosen_claims_nothing(scale):
    table = tables.read(f"table9/{scale}")
    assert not any(describe_rates(table, regime) for regime in table.regimes)
