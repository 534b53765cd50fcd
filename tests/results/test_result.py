import json
import os
import stat

import pytest

from robust_lr.utils import files
from robust_lr.utils.files import write_atomic, write_json
from robust_lr.utils.statistics import Proportion, wilson


def test_wilson_equals_published_values():
    # Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), interval in published.items():
        assert wilson(successes, n) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize("n", [1, 7, 100, 50_000])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.37, 0.5, 1.0])
def test_wilson_bounds_solve_the_score_equation(n, share):
    successes = round(share * n)
    p, z = successes / n, 1.959963984540054
    low, high = wilson(successes, n)
    assert 0 <= low <= p <= high <= 1
    for bound in (low, high):  # |p - bound| is z standard errors of the bound; at 0 and 1 both sides vanish
        assert (p - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / n, abs=1e-12)
    assert high - low > 0
    mirrored = wilson(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_wilson_reaches_the_ends_exactly_and_never_passes_them():
    assert wilson(0, 0) == (0.0, 1.0)
    for n in range(1, 300):
        low, high = wilson(0, n)
        assert low == 0.0
        assert 0 < high < 1
        low, high = wilson(n, n)
        assert 0 < low < 1
        assert high == 1.0


def test_wilson_widens_with_confidence_and_narrows_with_n():
    assert wilson(30, 100, z=2.5758)[0] < wilson(30, 100)[0] < wilson(300, 1000)[0]


def test_a_proportion_without_observations_has_no_value():
    nothing, some = Proportion(0, 0), Proportion(1, 4)
    assert nothing.value is None
    assert nothing.interval == (0.0, 1.0)
    assert str(nothing) == "-"
    assert some.value == 0.25
    assert str(some) == "25.0 [4.6, 69.9]"


def test_write_atomic_replaces_the_whole_file_and_makes_folders(tmp_path):
    file = tmp_path / "a" / "b" / "file"
    write_atomic(file, b"a long first version")
    write_atomic(file, b"second")
    assert file.read_bytes() == b"second"
    assert [p.name for p in file.parent.iterdir()] == ["file"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_write_atomic_leaves_the_old_file_and_no_other_when_it_fails(tmp_path, monkeypatch, step):
    file = tmp_path / "file"
    write_atomic(file, b"old")

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomic(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_json_refuses_nan_and_infinity(tmp_path):
    file = tmp_path / "file.json"
    write_json(file, {"a": [1, None]})
    for wrong in (float("nan"), float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            write_json(file, {"a": wrong})
    assert json.loads(file.read_text()) == {"a": [1, None]}
    assert os.listdir(tmp_path) == ["file.json"]
