import dataclasses
import sqlite3
from contextlib import closing

import pytest

from robust_lr.results.ledger import Ledger, Row
from robust_lr.utils.errors import InputError, RunError

ROW = Row(
    id=5, input_hash="0f", label=1, target=2, clean=1, adversarial=2, robust=False, robust_worst_seen=False,
    success=True, first_success=None, first_wrong=3, clean_loss=0.3, zero_gradients=0,
    margin=-0.5, loss=1.5, distance=0.1, broken_by=None, record="rw", unconfirmed=1,
    forwards=4, backwards=2, seconds=0.5,
)  # fmt: skip
ROWS = [dataclasses.replace(ROW, id=id_) for id_ in (7, 2**40, 0)]


@pytest.mark.parametrize("in_memory", [True, False])
def test_rows_survive_a_round_trip_in_the_order_of_ids(tmp_path, in_memory):
    with closing(Ledger(None if in_memory else tmp_path / "a" / "ledger", {})) as ledger:
        ledger.add(ROWS)
        ledger.add([])
        assert ledger.rows() == sorted(ROWS, key=lambda row: row.id)
        assert ledger.ids() == {0, 7, 2**40}
        assert all(type(row.success) is bool for row in ledger.rows())


def test_rows_are_on_disk_before_the_next_are_computed(tmp_path):
    file = tmp_path / "ledger"
    with closing(Ledger(file, {})) as ledger:
        ledger.add(ROWS)
        with closing(Ledger(file, {}, resume=True)) as other:
            assert other.rows() == ledger.rows()


def test_a_batch_with_an_existing_row_is_refused_as_a_whole(tmp_path):
    with closing(Ledger(tmp_path / "ledger", {})) as ledger:
        ledger.add([ROW])
        with pytest.raises(RunError, match=r"ledger: UNIQUE .*; rows written before are safe, continue with `resume`"):
            ledger.add([*ROWS, ROW])
        assert ledger.rows() == [ROW]


def test_a_full_disk_or_a_locked_file_is_one_clear_error(tmp_path):
    file = tmp_path / "ledger"
    with closing(Ledger(file, {})) as ledger, closing(sqlite3.connect(file)) as other:
        ledger.connection.execute("PRAGMA busy_timeout = 1")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunError, match="database is locked; rows written before are safe"):
            ledger.add(ROWS)
        other.rollback()
        ledger.connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(RunError, match="full; rows written before are safe"):
            ledger.add([dataclasses.replace(ROW, id=id_) for id_ in range(1000)])
        assert ledger.rows() == []


def test_the_first_difference_of_configurations_is_named(tmp_path):
    file, kept = tmp_path / "ledger", {"seed": 0, "eps": 0.1, "shape": (1, 2), "shard": None}
    Ledger(file, kept).close()
    Ledger(file, dict(reversed(kept.items())), resume=True).close()
    for changed, named in [
        ({"eps": 0.2}, "eps was 0.1 and is 0.2"),
        ({"shard": "1/2"}, "shard was None and is '1/2'"),
        ({"new": 1}, "new was None and is 1"),
    ]:
        with pytest.raises(InputError, match=f"holds another evaluation: {named}"):
            Ledger(file, kept | changed, resume=True)
    fewer = {key: value for key, value in kept.items() if key != "eps"}
    with pytest.raises(InputError, match=r"eps was 0\.1 and is None"):
        Ledger(file, fewer, resume=True)


def test_a_ledger_with_another_configuration_is_left_unchanged(tmp_path):
    """Also that of an older version, which lacks a table."""
    file = tmp_path / "ledger"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE configuration (json TEXT NOT NULL)")
        connection.execute("INSERT INTO configuration VALUES ('{\"schema\": 1}')")
    before = file.read_bytes()
    with pytest.raises(InputError, match="schema was 1 and is 3"):
        Ledger(file, {"schema": 3}, resume=True)
    assert file.read_bytes() == before


def test_a_ledger_of_another_version_is_refused_before_work_starts_and_left_unchanged(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path, {"eps": 8})) as ledger:
        ledger.add([ROW])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE images DROP COLUMN target_loss")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"written by another version of robust-lr, with other columns: start afresh"):
        Ledger(path, {"eps": 8}, resume=True)
    assert path.read_bytes() == before


def test_findings_are_kept(tmp_path):
    for remembered in (None, [3, 4]):
        with closing(Ledger(tmp_path / "ledger", {}, resume=True)) as ledger:
            assert ledger.recall("agreement") == remembered
            if remembered is None:
                ledger.remember("agreement", (3, 4))


def test_a_file_that_exists_is_not_used_unless_resumed(tmp_path):
    file = tmp_path / "ledger"
    Ledger(file, {}).close()
    with pytest.raises(InputError, match="exists: continue that evaluation"):
        Ledger(file, {})


def test_files_that_cannot_be_ledgers_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("some other file, long enough to be told from an empty database" * 20)
    for path in (file, tmp_path):
        with pytest.raises(InputError, match="cannot be used as a ledger"):
            Ledger(path, {}, resume=True)
    with pytest.raises(InputError, match=r"file cannot be created as a folder: File exists; choose another \(`out`\)"):
        Ledger(file / "ledger", {}, resume=True)
    assert file.read_text().startswith("some other file")


@pytest.mark.parametrize("error", [RunError("failed"), KeyboardInterrupt()])
@pytest.mark.parametrize("rows", [[], [ROW]])
def test_a_ledger_of_an_evaluation_that_fails_before_its_first_row_is_removed(tmp_path, rows, error):
    def evaluate():
        with closing(Ledger(tmp_path / "ledger", {}, resume=True)) as ledger, ledger.removed_if_it_fails():
            ledger.add(rows)
            raise error

    with pytest.raises(type(error)):
        evaluate()
    assert (tmp_path / "ledger").exists() == bool(rows or isinstance(error, KeyboardInterrupt))
    Ledger(tmp_path / "ledger", {}, resume=True).close()
    rows = []
    with pytest.raises(type(error)):
        evaluate()  # a file that was there before stays
    assert (tmp_path / "ledger").exists()
