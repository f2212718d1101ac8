"""The documentation site: built once, without a warning; then crawled, read and searched."""

import fcntl
import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import get_args
from urllib.parse import unquote, urldefrag

import pytest
from browser import CHROMIUM, DRIVER, MISSING, Browser, browser
from public import public_homes
from shown_commands import in_page, problem

import mesaopt
from mesaopt import cli
from mesaopt.arguments import Command
from mesaopt.papers.index import read_index
from mesaopt.recipes import RECIPES

ROOT = Path(mesaopt.__file__).parent.parent
NEEDED = ("sphinx", "myst_parser", "furo", "sphinx_copybutton", "jupytext", "transformers")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED),
        reason="needs the documentation's packages: pip install '.[docs,hf]'",
    ),
]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, once for all processes of a test session."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    out, log = folder / "site", folder / "site.log"
    with open(folder / "site.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            command = [
                sys.executable,
                "-m",
                "sphinx",
                "--quiet",
                "--fail-on-warning",
                "--jobs",
                "2",
            ]
            command += ["--doctree-dir", str(folder / "doctrees"), "docs", str(out)]
            built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            log.write_text(f"{built.stdout}{built.stderr}" or ("" if not built.returncode else "?"))
    assert not log.read_text()
    return out


@pytest.fixture
def site_code(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the code that writes the pages."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    return importlib.import_module("mesaopt_site")


def test_parts_of_a_page_are_filled(site_code: ModuleType) -> None:
    page = "# Title\n\n<!-- generated: twice ab -->\n\nInline <!-- generated: twice b --> stays.\n"
    filled = site_code.fill(page, {"twice": lambda text: 2 * text})
    assert filled == "# Title\n\nabab\n\nInline <!-- generated: twice b --> stays.\n"


@pytest.mark.parametrize(
    ("line", "escaped"),
    [
        ("the sum of |x_t|^2, x* and x_", r"the sum of \|x_t\|^2, x\* and x\_"),
        ("- a `|code|` and :func:`f_`", "- a `|code|` and :func:`f_`"),
        (">>> a_ * b | c", ">>> a_ * b | c"),
    ],
)
def test_mathematics_in_docstrings_is_kept(site_code: ModuleType, line: str, escaped: str) -> None:
    assert site_code.api.escape([line]) == [escaped]


def test_the_markdown_of_a_page_stands_alone(site_code: ModuleType) -> None:
    prose = "A [link](a.md) and [code](../x/y.py). More."
    page = f"# T\n\n```console\nls\n```\n\n{prose}\n\n```{{toctree}}\na\n```\n"
    text = site_code.markdown.standalone(page, "b")
    assert "A [link](a.md) and code (`x/y.py` in the repository). More." in text
    assert "toctree" not in text
    assert site_code.markdown.first_sentence(page) == "A link and code."


def test_tables_keep_bars_and_angle_brackets(site_code: ModuleType) -> None:
    table = site_code.tables.table(("a",), [("x|y <z> `<w>`",)])
    assert table.splitlines()[2] == r"| x\|y &lt;z> `<w>` |"


class Page(HTMLParser):
    """What a page links to, what it loads, and what can be linked to in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors = {"", "top"}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("img", "script") and "src" in values:
            self.loads.append(values["src"])
        if tag == "link" and values.get("rel") not in ("index", "search", "next", "prev"):
            self.loads.append(values["href"])


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}


def test_no_link_is_dead_and_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        assert not [load for load in page.loads if "//" in load], path
        for link in page.links + page.loads:
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            target, anchor = urldefrag(link)
            file = (path.parent / unquote(target.split("?")[0])).resolve() if target else path
            if not file.is_file() or (file in pages and unquote(anchor) not in pages[file].anchors):
                dead.append((path.name, link))
    assert len(pages) > 30
    assert any(link.endswith(".ipynb") for page in pages.values() for link in page.links)
    assert dead == []


def test_llms_txt_lists_the_markdown_of_every_page(site: Path, pages: dict[Path, Page]) -> None:
    names = {str(path.relative_to(site.resolve()))[: -len(".html")] for path in pages}
    listing = (site / "llms.txt").read_text()
    assert listing.startswith("# mesaopt\n\n> ")
    listed = {line.split("](")[1].split(".md)")[0] for line in listing.splitlines() if "](" in line}
    assert listed == names - {"index", "search"}
    for name in listed:
        text = (site / f"{name}.md").read_text()
        assert len(text) > 200, name
        assert "\n<!-- generated" not in text, name
        assert "{toctree}" not in text, name
        assert "{eval-rst}" not in text, name
    for line in listing.splitlines():
        if line.startswith("- "):
            assert len(line.split(".md): ")[1]) > 15, line


def test_every_public_name_is_described(site: Path, pages: dict[Path, Page]) -> None:
    folder = (site / "reference" / "api").resolve()
    described = {one for path in pages if path.parent == folder for one in pages[path].anchors}
    public = {f"{homes[0]}.{name}" for (name, _), homes in public_homes().items()}
    assert len(public) > 400
    assert public - described == set()


def test_a_signature_leads_to_the_class_that_is_meant(site: Path) -> None:
    page = (site / "reference" / "api" / "papers.reproduce.html").read_text()
    assert re.findall(r'href="([^"]*\.Engine)"', page) == ["sweeps.html#mesaopt.sweeps.Engine"]


def test_every_command_has_the_options_of_its_help(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (site / "reference/command-line.md").read_text()
    sections = dict(section.split("\n", 1) for section in page.split("\n## ")[1:])
    assert len(sections) == len(get_args(Command))
    for name, section in sections.items():
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        options = re.findall(r"^. (--[\w-]+)", capsys.readouterr().out, flags=re.MULTILINE)
        shown = re.findall(r"^\| `(--[\w-]+)", section, flags=re.MULTILINE)
        assert shown == options, name
        rows = re.findall(r"^\| `.*", section, flags=re.MULTILINE)
        assert all(row.split(" | ")[1] for row in rows), name


def test_recipes_settings_and_figures_are_all_there(site: Path) -> None:
    recipes = (site / "reference/recipes.md").read_text()
    assert all(f"`{name}`" in recipes for name in RECIPES)
    settings = (site / "reference/settings.md").read_text()
    assert "`train.learning_rate`" in settings
    gallery = (site / "gallery.md").read_text()
    figures = [row["name"] for row in read_index() if "/" in row["name"]]
    assert len(figures) > 40
    assert all(f"mesaopt reproduce {name} " in gallery for name in figures)
    assert "Trained on 32 pairs, with keys of 32 dimensions" in gallery


def test_commands_that_are_written_from_the_code_can_be_given(site: Path) -> None:
    shown = [one for path in site.rglob("*.md") for one in in_page(path.read_text())]
    assert len(shown) > 250
    assert [one for one in map(problem, shown) if one] == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not (CHROMIUM and DRIVER):
        pytest.skip(MISSING)
    with browser(tmp_path_factory.mktemp("browser") / "profile") as window:
        yield window


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def go(page: Browser, address: str) -> None:
    page.call("POST", "/url", {"url": address})


@pytest.mark.browser
@pytest.mark.parametrize("served", [True, False])
def test_the_search_finds_the_effective_ridge(
    page: Browser, site: Path, address: str, served: bool
) -> None:
    page.resize(1280)
    root = address if served else site.as_uri()
    go(page, f"{root}/index.html")
    page.run(
        """const box = document.querySelector(".sidebar-search");
        box.value = "effective ridge"; box.form.submit();"""
    )
    wanted = ["effective_ridges", "Analysing"]
    found = page.call(
        "POST",
        "/execute/async",
        {
            "script": """const [wanted, done] = arguments; let left = 100;
            const look = () => {
              const links = [...document.querySelectorAll("ul.search li a")].map(a => a.textContent);
              const there = wanted.every(word => links.some(link => link.includes(word)));
              (there || !left--) ? done(links) : setTimeout(look, 50);
            }; look();""",
            "args": [wanted],
        },
    )
    assert all(any(word in title for title in found) for word in wanted), found


@pytest.mark.browser
def test_pages_can_be_walked_through(page: Browser, address: str) -> None:
    page.resize(1280)
    go(page, f"{address}/index.html")
    page.errors()
    page.run("""document.querySelector('.sidebar-tree a[href$="start/install.html"]').click()""")
    assert page.run("return document.querySelector('h1').firstChild.textContent") == "Install"
    page.run("document.querySelector('.next-page').click()")
    assert page.run("return location.pathname") == "/start/first-minute.html"
    current = page.run("return document.querySelector('.sidebar-tree .current-page').textContent")
    assert "first minute" in current
    page.resize(390)
    drawer = "return document.querySelector('.sidebar-drawer').getBoundingClientRect().left"
    assert page.run(drawer) < 0
    page.run("document.querySelector('.header-left label, .nav-overlay-icon').click()")
    page.run("document.getAnimations().forEach(animation => animation.finish())")
    assert page.run(drawer) == 0
    assert page.errors() == []


WIDEST = ["index", "gallery", "core", "uncovering", "family", "performance", "log", "glossary"]
WIDEST += ["reference/command-line", "reference/recipes", "reference/settings", "how-to/layer"]
WIDEST += ["reference/api/ops", "reference/api/config", "tutorials/one-layer-one-gradient-step"]
"""Pages with wide tables, code, pictures and signatures."""


@pytest.mark.browser
def test_no_page_is_wider_than_a_phone(page: Browser, site: Path) -> None:
    page.resize(390)
    wide = {}
    for name in WIDEST:
        page.open(path := site / f"{name}.html")
        width = page.run("return document.documentElement.scrollWidth")
        if width > 390:
            wide[path.name] = width
    assert wide == {}
