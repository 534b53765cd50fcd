"""``robust-lr report``, ``rows`` and ``show``."""

import csv
import io

import pytest
from click.testing import CliRunner
from conftest_of_reports import NAMES, PROTOCOLS, images, network, runs  # noqa: F401 - a fixture

import robust_lr as rlr
from robust_lr.cli import main
from robust_lr.results.stored import read_evaluation


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A folder with one evaluation."""
    folder = tmp_path_factory.mktemp("one")
    rlr.evaluate(network(0.3), images(), PROTOCOLS[0], out=folder / "attack", name="net")
    return folder


def test_report_writes_one_page_by_default(one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("report", one, "--title", "Nets & co")
    assert result.exit_code == 0, result.output
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Nets &amp; co</h1>" in page
    assert run("report", one, "--title", "Nets & co").exit_code == 0
    assert (tmp_path / "report.html").read_text() == page


def test_report_writes_the_formats_that_are_asked_for_and_no_other(one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"--latex": "t.tex", "--csv": "t.csv", "--markdown": "t.md"}
    result = run("report", one, *[word for pair in files.items() for word in pair])
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.csv", "t.md", "t.tex"]
    assert all(f"written to {name}" in result.output for name in files.values())


def test_report_draws_figures_into_a_folder(one, tmp_path, monkeypatch):
    from robust_lr.reports import pictures

    monkeypatch.setattr(pictures, "picture", lambda plot, kind: f"{plot.key} {kind}".encode())
    assert run("report", one, "--pdf", tmp_path / "figures").exit_code == 0
    files = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert files == ["classes-1.pdf", "curve-1-worst-seen.pdf", "margins-1.pdf", "survival-1.pdf"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "a.pdf"], "--out 'a.pdf': the file must end in .html or .htm"),
        (["--latex", "a"], "--latex 'a': the file must end in .tex"),
        (["--csv", "a.tsv"], "--csv 'a.tsv': the file must end in .csv"),
        (["--markdown", "a.html"], "--markdown 'a.html': the file must end in .md"),
    ],
)
def test_a_suffix_of_another_format_is_refused(one, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = run("report", one, *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["report", "rows", "show"])
def test_a_folder_without_an_evaluation_is_refused(tmp_path, command):
    result = run(command, tmp_path)
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert "holds no evaluation" in result.stderr


def test_rows_go_to_stdout_as_csv(one):
    result = run("rows", one / "attack")
    table = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [int(row["id"]) for row in table] == list(range(60))
    assert "evaluation" not in table[0]


def test_rows_of_several_evaluations_name_their_evaluation(runs, tmp_path):  # noqa: F811
    result = run("rows", runs / "seed-1", "--csv", tmp_path / "rows.csv")
    assert result.exit_code == 0, result.output
    assert f"180 rows written to {tmp_path / 'rows.csv'}" in result.output
    table = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert {row["evaluation"] for row in table} == {f"{name}/pgd" for name in NAMES}


def test_rows_are_refused_for_an_unknown_suffix(one, tmp_path):
    result = run("rows", one, "--parquet", tmp_path / "rows.csv")
    assert result.exit_code == 2
    assert "the file must end in .parquet" in result.stderr


def test_show_prints_figures_checks_and_the_curve_of_one_evaluation(one):
    result = run("show", one)
    assert result.exit_code == 0, result.output
    found = read_evaluation(one / "attack")
    assert f"{100 * found.record['robust_accuracy']:.1f}" in result.output
    assert "validity" in result.output
    assert "verdict: " in result.output
    for words in ("clean accuracy", "52 / 60", "pgd on three_patterns, seed 0"):
        assert words in result.output


def test_show_prints_models_and_pairs_of_several(runs):  # noqa: F811
    result = run("show", runs)
    assert result.exit_code == 0, result.output
    for words in ("three_patterns", "Differences of robust accuracy", "Mean ± standard deviation", "Verdicts"):
        assert words in result.output
