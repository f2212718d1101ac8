import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from toy_study import Toy

from mesaopt.errors import RunError
from mesaopt.papers.claims import read_claims
from mesaopt.papers.reproduce import reproduce
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
    assert html.count("<figure") == 5
    assert html.count("data:text/csv;base64,") == 5


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


def test_claims_are_listed_by_figure_and_nothing_is_said_of_training(
    tmp_path: Path, toy: Toy
) -> None:
    reproduce("toy", scale="smoke", out=tmp_path)
    html = write_report(tmp_path).read_text()
    wanted = ["fig1 · what fig1 shows", 'id="toy/fig1-low"', "fig3 · what", 'id="toy/fig3-low"']
    wanted += [f'<figure id="toy-fig{n}"' for n in (1, 2, 3)]
    places = [html.index(text) for text in wanted]
    assert places == sorted(places)
    assert html.count('<tr class="figure">') == 2, "the second figure claims nothing"
    assert 'id="runs"' not in html
    assert "Training" not in html
    assert "Measuring and drawing" in html
    assert 'aria-label="fig1: &quot;a&quot; &lt; b &amp; c"' in html
    assert "figures <b>" not in html


def test_a_page_of_chosen_figures_names_them(tmp_path: Path, toy: Toy) -> None:
    reproduce("toy", scale="smoke", out=tmp_path, only=["fig2", "fig3"])
    html = write_report(tmp_path).read_text()
    assert "figures <b>fig2, fig3</b>" in html
    assert "1 of 2 claims hold; 1 does not" in html


def test_a_page_without_claims_has_no_empty_table(tmp_path: Path, toy: Toy) -> None:
    reproduce("toy/fig2", scale="smoke", out=tmp_path)
    html = write_report(tmp_path).read_text()
    assert "<th>Verdict</th>" not in html
    assert html.count("<figure") == 1


def test_claims_of_a_single_figure_need_no_heading(folder: Path) -> None:
    html = write_report(folder).read_text()
    assert '<tr class="figure">' not in html
    assert "Training time" in html
    assert 'class="contents"' not in html


def test_many_figures_get_a_table_of_contents(folder: Path) -> None:
    path = folder / "figures" / "index.json"
    index = json.loads(path.read_text())
    names = [f"copy-{n}" for n in range(7)]
    for name in names:
        description = json.loads((folder / "figures" / "core-weights.json").read_text())
        for ending in ("svg", "csv"):
            shutil.copy(
                folder / f"figures/core-weights.{ending}", folder / f"figures/{name}.{ending}"
            )
        description |= {"id": name}
        (folder / "figures" / f"{name}.json").write_text(json.dumps(description))
    path.write_text(json.dumps(index | {"figures": names}))
    html = write_report(folder).read_text()
    assert re.findall(r'<li><a href="#([^"]+)"', html) == names


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
    assert found["drawings"] == 5
    assert found["fetched"] == []
    assert found["overflow"] <= 0


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


ATTACK = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def test_words_of_a_stranger_are_escaped(folder: Path) -> None:
    claims = json.loads((folder / "claims.json").read_text())
    texts = ("id", "paper", "figure", "statement", "basis")
    claims = [claim | dict.fromkeys(texts, ATTACK) for claim in claims[:1]]
    (folder / "claims.json").write_text(json.dumps(claims))
    index = json.loads((folder / "figures" / "index.json").read_text())
    name = index["figures"][0]
    runs = [run | {"name": ATTACK} for run in index["runs"]]
    headings = {ATTACK: ATTACK}
    values = {"title": ATTACK, "introduction": ATTACK, "headings": headings, "runs": runs}
    change(folder / "figures" / "index.json", **values)
    texts = {"id": ATTACK, "title": ATTACK, "caption": ATTACK, "settings": {ATTACK: ATTACK}}
    change(folder / "figures" / f"{name}.json", **texts)
    (folder / "figures" / f"{name}.csv").write_text(ATTACK)
    meta = {"started": ATTACK, "processor": ATTACK, "command": [ATTACK], "python": ATTACK}
    change(folder / "meta.json", **meta, packages={"mesaopt": ATTACK, ATTACK: ATTACK})
    change(folder / "config.json", scale=ATTACK, parts=[ATTACK])
    html = write_report(folder).read_text()
    page = Links(html)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert html.count("alert(1)") > 15, "everything is shown, as text"
    assert f'<figure id="{name}">' in html


@pytest.mark.parametrize(
    "name",
    [
        "../../outside",
        "/etc/passwd",
        "..",
        ".hidden",
        "",
        "a/b",
        "a b",
        'a"onload="x',
        "a\n",
        "a" * 101,
        "é",
    ],
)
def test_names_of_figures_are_plain(folder: Path, name: str) -> None:
    for ending in ("svg", "csv", "json"):
        source = next((folder / "figures").glob(f"core-*.{ending}"))
        shutil.copy(source, folder.parent / f"outside.{ending}")
    change(folder / "figures" / "index.json", figures=[name])
    with pytest.raises(RunError, match=r"index\.json: is damaged: figures"):
        write_report(folder)


@pytest.mark.parametrize(
    "name",
    ["claims.json", "config.json", "meta.json", "DONE", "figures", "figures/index.json"]
    + [f"figures/core-weights.{ending}" for ending in ("svg", "csv", "json")],
)
def test_links_to_elsewhere_are_not_followed(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(RunError, match="leads out of the folder"):
        write_report(folder)


def test_links_within_the_folder_and_to_the_folder_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "figures").rename(folder / "drawings")
    (folder / "figures").symlink_to("drawings")
    (tmp_path / "link").symlink_to(folder)
    assert "<svg" in write_report(tmp_path / "link").read_text()


def test_nothing_outside_the_folder_is_written(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious.txt"
    target.write_text("important")
    for name in ("index.html", ".part-index.html"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
    assert write_report(folder).read_text().startswith("<!doctype html>")
    assert target.read_text() == "important"
    assert not (folder / "index.html").is_symlink()


DAMAGED = {
    "claims.json": ["", "{}", "null", "[3]", "[{}]", "nonsense", "[" * 9999],
    "figures/index.json": ["", "[]", "{}", '{"title": 3}'],
    "meta.json": ["", "[]", "{}", "null"],
    "config.json": ["", "[]", "{}", '{"scale": "smoke", "parts": 3}', '{"scale": null}'],
    "DONE": ["", "[]", "{}", '{"training": "long", "measuring": 1}'],
    "figures/core-weights.json": ["", "[]", "{}", "3"],
    "figures/core-weights.svg": ["", "<svg>", "nothing drawn"],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in DAMAGED.items() for text in texts]
)
def test_every_damaged_file_of_results_is_named_in_one_line(
    folder: Path, name: str, text: str
) -> None:
    (folder / name).write_text(text)
    with pytest.raises(RunError, match=re.escape(Path(name).name)) as error:
        write_report(folder)
    assert "\n" not in str(error.value)
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"value": "low"},
        {"value": True},
        {"threshold": None},
        {"threshold": []},
        {"threshold": [1.0]},
        {"threshold": [None, None]},
        {"threshold": ["a", "b"]},
        {"statement": 3},
        {"id": None},
        {"passed": "yes"},
    ],
)
def test_claims_are_checked(folder: Path, changes: dict) -> None:
    path = folder / "claims.json"
    claims = json.loads(path.read_text())
    path.write_text(json.dumps([claims[0] | changes]))
    with pytest.raises(RunError, match=r"claims\.json: is"):
        read_claims(folder)


def test_a_claim_that_says_it_passed_is_judged_again(folder: Path) -> None:
    path = folder / "claims.json"
    claims = [claim | {"passed": True} for claim in json.loads(path.read_text())]
    path.write_text(json.dumps(claims))
    assert "9 of 12 claims hold; 3 do not" in write_report(folder).read_text()
