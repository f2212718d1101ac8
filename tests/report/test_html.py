import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mesaopt.errors import RunError
from mesaopt.papers.claims import read_claims
from mesaopt.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture
def folder(results: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(results, tmp_path / "results"))


class Links(HTMLParser):
    """Everything a browser would have to fetch."""

    def __init__(self, html: str):
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "poster", "data")
        self.fetched += [value for name, value in attrs if name in names and value]


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    html = write_report(folder).read_text()
    links = Links(html)
    for link in links.fetched:
        assert link.startswith(("data:", "#")), link
    assert "script" not in links.tags
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_claims_come_first_then_figures_then_the_environment(folder: Path) -> None:
    html = write_report(folder).read_text()
    places = [html.index(f'id="{name}"') for name in ("claims", "figures", "runs", "environment")]
    assert places == sorted(places)
    for claim in read_claims(folder):
        assert claim.id in html
        assert claim.threshold in html
    assert html.count('class="claim"') == len(read_claims(folder))
    assert html.count("<figure") == 4
    assert html.count("data:text/csv;base64,") == 4


def test_names_inside_drawings_are_unique_and_found(folder: Path) -> None:
    html = write_report(folder).read_text()
    named = re.findall(r'\bid="([^"]+)"', html)
    assert len(named) == len(set(named))
    for link in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html):
        assert (link[0] or link[1]) in named


def test_drawings_follow_the_colours_of_the_page(folder: Path) -> None:
    html = write_report(folder).read_text()
    drawings = html[html.index("<figure") :]
    assert "var(--ink)" in drawings
    assert "#1b1f24" not in drawings
    assert "prefers-color-scheme: dark" in html


def test_a_failed_claim_is_shown_as_failed(folder: Path) -> None:
    html = write_report(folder).read_text()
    failed = sum(not claim.passed for claim in read_claims(folder))
    assert failed == 3
    assert html.count('class="chip bad">fails') == failed
    assert "9 of 12 claims hold; 3 do not" in html


def test_a_missing_part_is_named(folder: Path) -> None:
    (folder / "figures" / "core-weights.svg").unlink()
    with pytest.raises(RunError, match=r"core-weights\.svg: there is no such file"):
        write_report(folder)


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_every_claim_and_misses_nothing(
    folder: Path, tmp_path: Path, width: int
) -> None:
    page = write_report(folder)
    # The page has no script; a copy gets one that writes down what the browser made of it.
    probe = """<script>
    addEventListener("load", () => {
      const box = e => e.getBoundingClientRect();
      const seen = e => box(e).height > 5 && box(e).width > 50 && e.checkVisibility();
      document.body.dataset.found = JSON.stringify({
        claims: [...document.querySelectorAll("tr.claim")].filter(seen).length,
        drawings: [...document.querySelectorAll("figure svg")].filter(e => box(e).height > 80).length,
        fetched: performance.getEntriesByType("resource").map(e => e.name),
        overflow: document.documentElement.scrollWidth - innerWidth,
      });
    });
    </script>"""
    copy = folder / "probed.html"
    copy.write_text(page.read_text().replace("</body>", probe + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    out = subprocess.run(
        [str(BROWSER), *flags, "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"HOME": str(tmp_path)},
    ).stdout
    text = re.search(r'data-found="([^"]+)"', out)
    assert text, "the page did not load"
    found = json.loads(text.group(1).replace("&quot;", '"'))
    assert found["claims"] == len(read_claims(folder))
    assert found["drawings"] == 4
    assert found["fetched"] == []
    assert found["overflow"] <= 0
