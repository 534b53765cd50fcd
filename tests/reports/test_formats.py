"""The same figures in every format, built twice to the same bytes."""

import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from robust_lr.reports.html import html
from robust_lr.reports.latex import latex
from robust_lr.reports.markdown import markdown
from robust_lr.reports.pictures import METADATA, picture
from robust_lr.reports.record import build
from robust_lr.reports.sections import sections
from robust_lr.reports.tidy import tidy
from robust_lr.utils.statistics import Proportion

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Cells of every table by its id, with their attributes; checks that elements are nested."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.open, self.links, self.ids = {}, [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        about = dict(attributes)
        self.ids += [about["id"]] if "id" in about else []
        self.links += [about["href"]] if "href" in about else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(about["id"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append({"text": "", "detail": "", **about})

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if ("td" in self.open or "th" in self.open) and self.rows:
            part = "detail" if "small" in self.open else "text"
            self.rows[-1][-1][part] += text.strip()


@pytest.fixture(scope="module")
def page(report):
    return Page(html(report))


def figures(text):
    """Every percentage with an interval, in order."""
    return [tuple(map(float, found)) for found in re.findall(r"(\d+\.\d)\D*?\[(\d+\.\d), (\d+\.\d)\]", text)]


def expected(report):
    """The figures of the headline table and of the pairs, from the record alone."""
    headline, pairs = [], []
    for section in sections(report):
        for table in section.tables:
            if section.key == "headline":
                headline += [cell.share for row in table.rows for cell in row if cell.share is not None]
            if section.key == "pairs":
                pairs += [(row[3].text, row[3].detail, row[-1].text) for row in table.rows]
    return headline, pairs


def three(share):
    return tuple(round(100 * value, 1) for value in (share.value, *share.interval))


def test_the_headline_has_the_accuracies_of_the_evaluations(report, page):
    (table,) = [cells for name, cells in page.tables.items() if name.startswith("table-headline")]
    heading, *rows = table
    assert [cell["text"] for cell in heading] == ["model", "clean", "cascade", "pgd", "pgd-targeted"]
    for row in rows:
        for cell, protocol in zip(row[2:], ("cascade", "pgd", "pgd-targeted"), strict=True):
            found = [
                found
                for group in report.groups
                for name, found in group.members.items()
                if (group.name, name) == (protocol, row[0]["text"])
            ]
            if len(found) > 1:  # two seeds: their mean
                mean = sum(100 * each.shares["robust"].value for each in found) / len(found)
                assert cell["text"] == f"{mean:.1f}"
                continue
            share = Proportion(int(cell["data-count"]), int(cell["data-n"]))
            assert share == found[0].shares["robust"]
            assert (float(cell["text"]), *map(float, re.findall(r"\d+\.\d", cell["detail"]))) == three(share)


def test_html_markdown_latex_and_csv_have_the_same_numbers(report, page):
    headline, pairs = expected(report)
    assert len(headline) == 9
    assert len(pairs) == 12
    (cells,) = [cells for name, cells in page.tables.items() if name.startswith("table-headline")]
    shown = [cell for row in cells[1:] for cell in row if "data-n" in cell]
    assert [Proportion(int(cell["data-count"]), int(cell["data-n"])) for cell in shown] == headline
    wanted = [three(share) for share in headline]
    assert [figures(f"{cell['text']} {cell['detail']}")[0] for cell in shown] == wanted
    for text, section in ((markdown(report), "## Paired"), (latex(report), "\\label{tab:pairs")):
        assert figures(text.replace("\\scriptsize", "").partition(section)[0])[: len(wanted)] == wanted
    lines = list(csv.DictReader(io.StringIO(tidy(report))))
    shares = [line for line in lines if line["kind"] == "share"]
    by_key = {(line["model"], line["protocol"], line["seed"], line["figure"]): line for line in shares}
    for found in report.evaluations:
        line = by_key[report.labels[found.number], found.protocol["name"], str(found.seed), "robust"]
        share = found.shares["robust"]
        assert (int(line["count"]), int(line["n"]), float(line["value"])) == (share.count, share.n, share.value)
        assert (float(line["low"]), float(line["high"])) == share.interval

    html_pairs = [(row[3]["text"], row[3]["detail"], row[-1]["text"]) for row in page.tables["table-pairs-1"][1:]]
    assert html_pairs == pairs
    differences = [line for line in lines if line["kind"] == "difference" and line["figure"] == "robust"]
    assert [(f"{100 * float(d['value']):+.1f}", f"{float(d['p_holm']):.2g}") for d in differences] == [
        (text, p) for text, _, p in pairs
    ]
    for text, detail, p in pairs:
        assert re.search(
            rf"{re.escape(text)}\*{{0,2}} {re.escape(detail)} \|.* \*{{0,2}}{p}\*{{0,2}} \|", markdown(report)
        )
        assert re.search(rf"{re.escape(text)}}}? {{\\scriptsize {re.escape(detail)}}} .*{p}", latex(report))


def test_winners_are_bold_everywhere(report, page):
    (table,) = [cells for name, cells in page.tables.items() if name.startswith("table-headline")]
    bold = [cell["text"] for row in table[1:] for cell in row if "strong" in cell.get("class", "")]
    assert bold
    for value in bold:
        assert f"**{value}**" in markdown(report)
        assert f"\\textbf{{{value}}}" in latex(report)


def test_every_format_is_the_same_when_built_twice_from_the_ledgers(report, runs):
    again = build([runs])
    for form in (html, markdown, latex, tidy):
        assert form(report) == form(again)


@pytest.fixture(scope="module")
def plots(report):
    """One plot of each kind."""
    return {plot.kind: plot for section in sections(report) for plot in section.plots}


@pytest.mark.slow
def test_pictures_are_the_same_when_drawn_twice_and_as_wide_as_a_column(plots):
    image = pytest.importorskip("PIL.Image")
    for plot in plots.values():
        assert image.open(io.BytesIO(picture(plot, "png"))).width == pytest.approx(3.35 * 300, abs=2)
    for kind in METADATA:
        assert picture(plots["forest"], kind) == picture(plots["forest"], kind)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex (Debian: texlive-latex-recommended)")
def test_the_latex_compiles(report, tmp_path):
    (tmp_path / "tables.tex").write_text(latex(report))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass[twocolumn]{article}\\usepackage[utf8]{inputenc}\\usepackage{booktabs}"
        "\\begin{document}\\input{tables}\\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Undefined" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000


def luminance(color):
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colors_have_the_contrast_that_wcag_asks_for(report):
    style = html(report).partition("</style>")[0]
    blocks = re.findall(r"\{([^{}]*--bg:[^{}]*)\}", style)
    assert len(blocks) == 3  # light, dark by button, dark by system
    for block in blocks:
        colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))

        def contrast(one, other, colors=colors):
            high, low = sorted((luminance(colors[one]), luminance(colors[other])), reverse=True)
            return (high + 0.05) / (low + 0.05)

        for name in ("ink", "muted", "accent", "good", "bad"):
            assert contrast(name, "bg") >= 4.5, name
            assert contrast(name, "surface") >= 4.5, name
        assert contrast("ink", "bad-bg") >= 4.5
        for index in range(8):
            assert contrast(f"s{index}", "bg") >= 3, index
