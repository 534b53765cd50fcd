"""The page in a real browser: Chromium without a screen."""

import pytest
from chromium import Browser, executable
from conftest_of_reports import NAMES

from robust_lr.reports.html import html

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="no Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def url(report, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html(report), encoding="utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


#: follow a link within the page, and wait until the page has followed it
GO = """const go = (hash) => location.hash === hash ? null : new Promise((done) => {
    addEventListener('hashchange', done, {once: true});
    location.hash = hash;
});
"""


def is_quiet(browser, url):
    """No request but for the page itself, and nothing in the console."""
    return [request for request in browser.requests() if request.partition("#")[0] != url] == browser.complaints() == []


@pytest.mark.parametrize(("width", "mobile"), [(1280, False), (390, True)])
def test_the_page_opens_without_a_request_an_error_or_a_sideways_scroll(browser, url, width, mobile):
    browser.open(url, width, 900, mobile)
    assert is_quiet(browser, url)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('section').length") == 10
    small = browser.run(
        "Math.min(...[...document.querySelectorAll('.plot > svg text')].map((t) => t.getBoundingClientRect().height))"
    )
    assert small > 8
    cut = browser.run(
        "[...document.querySelectorAll('.plot > svg')].filter((svg) => [...svg.querySelectorAll('text')].some((t) => {"
        "const a = t.getBoundingClientRect(), b = svg.getBoundingClientRect();"
        "return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1; }))"
        ".map((svg) => svg.parentNode.id)"
    )
    assert cut == []


def column(browser, at, table="#table-headline-1"):
    return browser.run(
        f"[...document.querySelectorAll('{table} tbody tr')].map((row) => row.cells[{at}])"
        ".map((cell) => cell.querySelector('a').textContent)"
    )


def test_a_table_sorts_by_number_down_then_up_and_says_so(browser, url):
    browser.open(url, 1280, 900)
    heading = "document.querySelector('#table-headline-1 th:nth-child(3)')"
    before = column(browser, 2)
    browser.run(f"{heading}.querySelector('button').click()")
    falling = [float(value) for value in column(browser, 2)]
    assert falling == sorted(map(float, before), reverse=True)
    assert browser.run(f"{heading}.getAttribute('aria-sort')") == "descending"
    browser.run(f"{heading}.querySelector('button').click()")
    assert [float(value) for value in column(browser, 2)] == falling[::-1]
    browser.run("document.querySelector('#table-headline-1 th:nth-child(1) button').click()")
    assert browser.run(
        "[...document.querySelectorAll('#table-headline-1 tbody th')].map((cell) => cell.textContent.trim())"
    ) == sorted(NAMES, key=str.lower)
    assert browser.run("document.querySelectorAll('#table-headline-1 [aria-sort]').length") == 1
    assert is_quiet(browser, url)


def test_the_theme_is_toggled_and_kept(browser, url):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.open(url, 1280, 900)
    color = "getComputedStyle(document.body).backgroundColor"
    assert browser.run(color) == "rgb(255, 255, 255)"
    browser.run("document.getElementById('theme').click()")
    assert browser.run(color) == "rgb(15, 19, 24)"
    assert browser.run("document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    browser.open(url, 1280, 900)
    assert browser.run(color) == "rgb(15, 19, 24)"
    browser.run("localStorage.clear()")
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.open(url, 1280, 900)
    assert browser.run(color) == "rgb(15, 19, 24)"
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert is_quiet(browser, url)


def test_every_number_opens_as_many_rows_as_it_counts(browser, url):
    browser.open(url, 1280, 900)
    wrong = browser.run(
        GO
        + """(async () => {
        const wrong = [];
        for (const cell of document.querySelectorAll('main td[data-n]')) {
            const link = cell.querySelector('a.rows');
            if (!link) continue;
            await go(link.hash);
            const words = document.getElementById('rows-count').textContent;
            const shown = document.querySelectorAll('#rows-table tbody tr').length;
            const wanted = `${cell.dataset.count} of ${cell.dataset.n} images`;
            const right = words.startsWith(wanted) && shown === Number(cell.dataset.count);
            if (!right) wrong.push([link.hash, words, wanted, shown]);
        }
        return wrong;
        })()"""
    )
    assert wrong == []
    assert browser.run("document.getElementById('rows').open")
    browser.run("document.getElementById('rows-close').click()")
    assert not browser.run("document.getElementById('rows').open")
    while browser.run("location.hash"):  # the event of closing comes a little later
        pass
    assert browser.complaints() == []


def test_counts_of_pairs_open_the_images_that_only_one_model_gets_right(browser, url):
    browser.open(url, 1280, 900)
    wrong = browser.run(
        GO
        + """(async () => {
        const wrong = [];
        for (const row of document.querySelectorAll('#table-pairs-1 tbody tr')) for (const at of [4, 5]) {
            await go(row.cells[at].querySelector('a').hash);
            const shown = document.querySelectorAll('#rows-table tbody tr').length;
            if (shown !== Number(row.cells[at].dataset.sort)) wrong.push([location.hash, shown]);
        }
        return wrong;
        })()"""
    )
    assert wrong == []


def test_commands_are_copied(browser, url):
    browser.open(url, 1280, 900)
    browser.run("document.querySelector('.copy').click()")
    assert browser.run(
        "new Promise((done) => setTimeout(() => done(document.querySelector('.copy').textContent), 50))"
    ) == ("Copied")
    assert browser.complaints() == []


def test_printing_is_light_and_unfolds_everything(browser, url):
    browser.open(url, 1280, 900)
    browser.run("document.getElementById('theme').click()")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    assert browser.run("document.documentElement.dataset.theme") == "light"
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    assert len(browser.call("Page.printToPDF")["data"]) > 50_000
    browser.run("localStorage.clear()")
