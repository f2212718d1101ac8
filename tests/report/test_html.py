import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, MISSING, browser
from helpers import is_for_keyboards
from markupsafe import escape
from toy_study import Toy

from mesaopt.errors import RunError
from mesaopt.papers.claims import read_claims
from mesaopt.papers.reproduce import reproduce
from mesaopt.papers.untrained import Untrained, write_untrained
from mesaopt.report import write_report
from mesaopt.report.widget import script


@pytest.fixture
def folder(results: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(results, tmp_path / "results"))


class Links(HTMLParser):
    """Everything a browser would have to fetch, and everything a reader may follow."""

    def __init__(self, html: str):
        super().__init__()
        self.fetched: list[str] = []
        self.followed: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.in_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "poster", "data")
        links = self.followed if tag == "a" else self.fetched
        links += [value for name, value in attrs if name in names and value]
        self.in_script = tag == "script"
        if self.in_script:
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.in_script:
            attrs, text = self.scripts[-1]
            self.scripts[-1] = attrs, text + data

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def run_only_the_package(self) -> bool:
        """Say whether the one script is that of the package, and all others are data made of numbers."""
        *data, (attrs, text) = self.scripts
        return not attrs and text == script() and all(_is_data(*one) for one in data)


DATA = {"type": "application/json", "class": "widget-data"}


def _is_data(attrs: dict[str, str | None], text: str) -> bool:
    words = re.findall(r'"([^"]*)"', text)
    plain = all(re.fullmatch(r"[a-z_]+|#[0-9a-f]{6}|[0-9. ]*", word) for word in words)
    place = {"data-place": "play-core-training"}
    return plain and attrs == DATA | place


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    html = write_report(folder).read_text()
    links = Links(html)
    for link in links.fetched:
        assert link.startswith(("data:", "#")), link
    for link in links.followed:
        assert (
            link.startswith(("data:text/csv", "#")) or link == SOURCE or (folder / link).is_file()
        )
    assert links.run_only_the_package()
    assert is_for_keyboards(html)
    assert html.count("(in the folder beside this page)") == html.count("<figure")
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_figures_come_first_then_checks_of_rounding_then_the_environment(folder: Path) -> None:
    html = write_report(folder).read_text()
    names = ("verdict", "contents", "core-in-context-loss", "rounding", "runs", "environment")
    places = [html.index(f'id="{name}"') for name in names]
    assert places == sorted(places)
    for claim in read_claims(folder):
        assert claim.id in html
        assert claim.threshold in html
    assert html.count('class="claim"') == len(read_claims(folder))
    count = len(json.loads((folder / "figures" / "index.json").read_text())["figures"])
    assert html.count("<figure") == html.count("data:text/csv;base64,") == count > 3


def test_claims_stand_behind_the_figure_that_shows_them_linked_both_ways(folder: Path) -> None:
    html = write_report(folder).read_text()
    for claim in read_claims(folder):
        group = "rounding" if claim.shown_in == "rounding" else f"core-{claim.shown_in}"
        start = html.index(f'id="{group}"')
        end = html.find("</figure>", start) if group != "rounding" else html.index('id="runs"')
        assert start < html.index(f'id="{claim.id}"') < end, claim.id
        if group != "rounding":
            assert f'href="#claims-of-{group}"' in html
            assert f'<a href="#{group}">Back to the figure</a>' in html[start:end]
    assert {claim.shown_in for claim in read_claims(folder)} >= {"coefficients", "rounding"}


def test_headlines_are_numbers_of_claims(folder: Path) -> None:
    html = write_report(folder).read_text()
    index = json.loads((folder / "figures" / "index.json").read_text())
    claims = {claim.id: claim for claim in read_claims(folder)}
    assert len(index["headlines"]) == 3
    for headline in index["headlines"]:
        value = claims[headline["claim"]].value
        assert (
            f'<a href="#{headline["claim"]}"><b>{value:.3g}</b></a> {escape(headline["text"])}'
            in html
        )
    assert f'<a href="{SOURCE}"><cite>Uncovering mesa' in html


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "http://a.example", 'https://a.example/"onclick="f()', "//a", ""]
)
def test_the_address_of_the_paper_is_a_plain_one(folder: Path, url: str) -> None:
    source = {"title": "a", "authors": "b", "url": url}
    change(folder / "figures" / "index.json", source=source)
    with pytest.raises(RunError, match=r"index\.json: is damaged: source\.url"):
        write_report(folder)


def test_models_that_are_not_trained_are_named_at_the_top(folder: Path) -> None:
    lacking = Untrained(figure="fig<9>", recipes=("lsa-6", "<b>"), drawn=False)
    write_untrained(folder, [lacking])
    html = write_report(folder).read_text()
    assert "fig&lt;9&gt;: lsa-6, &lt;b&gt; (left out)" in html[: html.index("<nav")]
    assert "1 figure lacks models" in html
    (folder / "not-trained.json").unlink()
    assert "not trained yet" not in write_report(folder).read_text()


def test_drawings_beside_the_page_are_linked_where_there_are_some(folder: Path) -> None:
    (folder / "figures" / "core-weights.pdf").unlink()
    followed = Links(write_report(folder).read_text()).followed
    assert "figures/core-weights.png" in followed
    assert "figures/core-weights.pdf" not in followed


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
    assert "9 of 12 claims hold; 3 do not:" in html
    for claim in read_claims(folder):
        if not claim.passed:
            assert f'<a href="#{claim.id}">{claim.name}</a>' in html[: html.index("<nav")]


def test_claims_are_listed_by_figure_and_nothing_is_said_of_training(
    tmp_path: Path, toy: Toy
) -> None:
    reproduce("toy", scale="smoke", out=tmp_path)
    html = write_report(tmp_path).read_text()
    wanted = ['<figure id="toy-fig1"', 'id="claims-of-toy-fig1"', 'id="toy/fig1-low"']
    wanted += ['<figure id="toy-fig2"', '<figure id="toy-fig3"', 'id="toy/fig3-low"']
    places = [html.index(text) for text in wanted]
    assert places == sorted(places)
    assert html.count('<details class="judged"') == 2, "the second figure claims nothing"
    assert 'id="runs"' not in html
    assert "Training" not in html
    assert "Measuring and drawing" in html
    assert 'aria-label="fig1: &quot;a&quot; &lt; b &amp; c"' in html
    assert " · figures " not in html


def test_a_page_of_chosen_figures_names_them(tmp_path: Path, toy: Toy) -> None:
    reproduce("toy", scale="smoke", out=tmp_path, only=["fig2", "fig3"])
    html = write_report(tmp_path).read_text()
    assert "figures fig2, fig3" in html
    assert "1 of 2 claims hold; 1 does not" in html


def test_a_page_without_claims_has_no_empty_table(tmp_path: Path, toy: Toy) -> None:
    reproduce("toy/fig2", scale="smoke", out=tmp_path)
    html = write_report(tmp_path).read_text()
    assert "<th>Verdict</th>" not in html
    assert html.count("<figure") == 1


def test_claims_of_an_old_folder_are_all_shown(folder: Path) -> None:
    claims = json.loads((folder / "claims.json").read_text())
    for claim in claims:
        del claim["shown_in"]
    (folder / "claims.json").write_text(json.dumps(claims))
    index = json.loads((folder / "figures" / "index.json").read_text())
    del index["source"], index["headlines"]
    (folder / "figures" / "index.json").write_text(json.dumps(index))
    for path in (folder / "figures").glob("core-*.json"):
        old = json.loads(path.read_text())
        del old["message"]
        path.write_text(json.dumps(old))
    html = write_report(folder).read_text()
    assert html.count('class="claim"') == len(claims)
    assert "Training time" in html


def test_the_contents_list_every_figure(folder: Path) -> None:
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
    contents = re.findall(r'<li><a href="#([^"]+)"', html[html.index("<nav") :])
    assert contents[: len(names)] == names


def test_a_missing_part_is_named(folder: Path) -> None:
    (folder / "figures" / "core-weights.svg").unlink()
    with pytest.raises(RunError, match=r"core-weights\.svg: there is no such file"):
        write_report(folder)


@pytest.mark.browser
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_claim_and_misses_nothing(
    folder: Path, tmp_path: Path, width: int
) -> None:
    page = write_report(folder)
    with browser(tmp_path / "browser") as window:
        window.resize(width)
        window.open(page)
        found = window.run(
            """document.querySelectorAll("details").forEach(e => e.open = true);
            const box = e => e.getBoundingClientRect();
            const seen = e => box(e).height > 5 && box(e).width > 50 && e.checkVisibility();
            const all = selector => [...document.querySelectorAll(selector)];
            return {
              claims: all("tr.claim").filter(seen).length,
              drawings: all(".drawing > svg").filter(e => box(e).height > 80).length,
              fetched: performance.getEntriesByType("resource").map(e => e.name),
              overflow: document.documentElement.scrollWidth - innerWidth,
              small: all(".drawing > svg text").map(e => box(e).height).filter(h => h < 6),
            };"""
        )
        assert window.errors() == []
    assert found["claims"] == len(read_claims(folder))
    assert found["drawings"] == page.read_text().count("<figure")
    assert found["fetched"] == []
    assert found["overflow"] <= 0
    assert found["small"] == []


@pytest.mark.browser
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)
def test_a_link_to_a_claim_opens_its_group(folder: Path, tmp_path: Path) -> None:
    page = write_report(folder)
    with browser(tmp_path / "browser") as window:
        window.open(page)
        hidden, shown = window.run(
            """const row = document.getElementById(arguments[0]);
            const open = () => row.closest("details").open;
            row.closest("details").open = false; const before = open();
            document.querySelector(`a[href="#${arguments[0]}"]`).click();
            return [before, open()];""",
            "core/lsa-1-beside-gd-1",
        )
    assert (hidden, shown) == (False, True)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


SOURCE = "https://arxiv.org/abs/2309.05858"
ATTACK = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def test_words_of_a_stranger_are_escaped(folder: Path) -> None:
    claims = json.loads((folder / "claims.json").read_text())
    texts = ("id", "paper", "figure", "statement", "basis", "shown_in")
    claims = [claim | dict.fromkeys(texts, ATTACK) for claim in claims[:1]]
    (folder / "claims.json").write_text(json.dumps(claims))
    index = json.loads((folder / "figures" / "index.json").read_text())
    name = index["figures"][0]
    runs = [run | {"name": ATTACK} for run in index["runs"]]
    values = {"title": ATTACK, "introduction": ATTACK, "runs": runs}
    values |= {"headlines": [{"claim": ATTACK, "text": ATTACK}]}
    values |= {"source": {"title": ATTACK, "authors": ATTACK, "url": SOURCE}}
    change(folder / "figures" / "index.json", **values)
    texts = {"id": ATTACK, "title": ATTACK, "caption": ATTACK, "message": ATTACK}
    texts |= {"settings": {ATTACK: ATTACK}}
    change(folder / "figures" / f"{name}.json", **texts)
    (folder / "figures" / f"{name}.csv").write_text(ATTACK)
    meta = {"started": ATTACK, "processor": ATTACK, "command": [ATTACK], "python": ATTACK}
    change(folder / "meta.json", **meta, packages={"mesaopt": ATTACK, ATTACK: ATTACK})
    change(folder / "config.json", scale=ATTACK, parts=[ATTACK])
    html = write_report(folder).read_text()
    page = Links(html)
    assert page.run_only_the_package()
    assert "img" not in page.tags
    assert html.count("alert(1)") > 15, "everything is shown, as text"
    assert f'<figure id="{name}" ' in html


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


EMPTY = '{"title": "", "introduction": "", "figures": [], "runs": [], '
BAD_SOURCE, BAD_HEADLINES = EMPTY + '"source": 3}', EMPTY + '"headlines": [{"claim": 3}]}'
NO_MESSAGE = '{"title": "", "caption": "", "settings": {}, "seconds": 1, "message": 3}'
DAMAGED = {
    "claims.json": ["", "{}", "null", "[3]", "[{}]", "nonsense", "[" * 9999],
    "figures/index.json": ["", "[]", "{}", '{"title": 3}', BAD_SOURCE, BAD_HEADLINES],
    "meta.json": ["", "[]", "{}", "null"],
    "config.json": ["", "[]", "{}", '{"scale": "smoke", "parts": 3}', '{"scale": null}'],
    "DONE": ["", "[]", "{}", '{"training": "long", "measuring": 1}'],
    "figures/core-weights.json": ["", "[]", "{}", "3", NO_MESSAGE],
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
        {"shown_in": 3},
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
