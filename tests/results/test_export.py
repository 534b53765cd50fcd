"""Results for people and other programs: ``print``, CSV, Parquet, data frames."""

import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import robust_lr as rlr
from robust_lr.results import export
from robust_lr.results.ledger import read

PROTOCOL = rlr.protocols.PGD(name="mine", eps=16 / 255, step_size=8 / 255, steps=2, targeted=True)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), np.uint8)
    data = rlr.data.from_arrays(images, np.arange(12) % 3, ids=np.arange(12) * 5, name="noise")
    torch.manual_seed(0)
    return rlr.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), data, PROTOCOL, out=folder), folder


def test_a_result_has_the_rows_of_its_ledger_but_its_json_has_not(evaluated):
    result, folder = evaluated
    assert list(result.rows) == read(folder / "ledger.sqlite")
    assert "rows" not in result.to_dict()
    assert pickle.loads(pickle.dumps(result)).rows == result.rows


def test_print_shows_every_accuracy_with_interval_and_denominator(evaluated):
    result, _ = evaluated
    text = str(result)
    assert text.splitlines()[0] == "Sequential on noise"
    assert "eps 16/255, step 8/255, 2 steps" in text
    for share in (result.clean, result.robust_last, result.robust_worst_seen, result.success):
        assert f"{share.count} / {share.n}" in text
        assert f"{100 * share.value:.1f}" in text
    assert len({len(line) for line in text.splitlines()[2:7]}) == 1
    assert text.isascii()


def test_csv_survives_a_round_trip_through_pandas_and_polars(evaluated, tmp_path):
    result, _ = evaluated
    result.to_csv(tmp_path / "rows.csv")
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    for frame in (pandas.read_csv(tmp_path / "rows.csv"), polars.read_csv(tmp_path / "rows.csv")):
        assert list(frame.columns) == list(export.COLUMNS)
        assert list(frame["id"]) == [row.id for row in result.rows]
        assert frame["robust"].sum() == result.robust.count
        assert frame["loss"].to_list() == [row.loss for row in result.rows]


@pytest.mark.parametrize("library", export.FRAME_LIBRARIES)
def test_a_data_frame_is_made_by_the_installed_library(evaluated, monkeypatch, library):
    pytest.importorskip(library)
    monkeypatch.setattr(export, "FRAME_LIBRARIES", ("no_such_library", library))
    frame = evaluated[0].to_dataframe()
    assert type(frame).__module__.partition(".")[0] == library
    assert frame.shape == (12, len(export.COLUMNS))
    assert frame["robust"].sum() == evaluated[0].robust.count


def missing(name):
    raise ImportError(name)


def test_without_a_library_for_data_frames_or_parquet_the_error_says_what_to_install(evaluated, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(rlr.InputError, match="pip install pandas"):
        evaluated[0].to_dataframe()
    with pytest.raises(rlr.InputError, match="pip install polars"):
        export.write_parquet(tmp_path / "rows.parquet", export.records(evaluated[0].rows))
    assert not list(tmp_path.iterdir())


def test_parquet_holds_the_rows(evaluated, tmp_path):
    polars = pytest.importorskip("polars")
    export.write_parquet(tmp_path / "rows.parquet", export.records(evaluated[0].rows, evaluation="a/b"))
    frame = polars.read_parquet(io.BytesIO((tmp_path / "rows.parquet").read_bytes()))
    assert frame.columns == ["evaluation", *export.COLUMNS]
    assert frame["target"].to_list() == [row.target for row in evaluated[0].rows]
    assert frame["evaluation"].unique().to_list() == ["a/b"]
