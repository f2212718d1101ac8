"""A drawing from a stranger is data: what it draws is kept, and nothing else."""

import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from mesaopt.errors import RunError
from mesaopt.papers.plots import style
from mesaopt.report.svg import inline

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
BAD = [
    "<script>alert(1)</script>",
    '<script href="https://evil.example/x.js"/>',
    '<g onload="alert(1)"/>',
    '<path d="M0 0" onclick="alert(1)" ONMOUSEOVER="alert(1)"/>',
    '<a href="javascript:alert(1)"><text>click</text></a>',
    '<a xlink:href="https://evil.example"><rect width="9" height="9"/></a>',
    "<foreignObject><iframe src='https://evil.example'/></foreignObject>",
    '<h:script xmlns:h="http://www.w3.org/1999/xhtml">alert(1)</h:script>',
    '<h:img xmlns:h="http://www.w3.org/1999/xhtml" src="x" onerror="alert(1)"/>',
    '<image xlink:href="https://evil.example/pixel.png"/>',
    '<image href="file:///etc/passwd"/>',
    '<image href="data:image/svg+xml;base64,PHN2Zy8+"/>',
    '<image href="data:text/html,&lt;script&gt;alert(1)&lt;/script&gt;"/>',
    '<use xlink:href="https://evil.example/x.svg#a"/>',
    '<use href="data:image/svg+xml;base64,PHN2Zy8+#x"/>',
    "<style>@import url(https://evil.example/x.css); .chip.bad { display: none }</style>",
    '<rect style="fill: url(https://evil.example/x)"/>',
    '<rect style="background-image: url(//evil.example/x)"/>',
    '<rect style="position: fixed; inset: 0; z-index: 9"/>',
    r'<rect style="fill: u\72l(https://evil.example/x)"/>',
    '<rect fill="url(https://evil.example/x#a)"/>',
    '<rect fill="url( &quot;https://evil.example/x&quot; )"/>',
    '<rect style="fill:url(#ok) url(https://evil.example/x)"/>',
    '<rect clip-path="URL(https://evil.example/x)"/>',
    '<animate attributeName="href" values="javascript:alert(1)"/>',
    '<set attributeName="onmouseover" to="alert(1)"/>',
    '<rect class="chip good" data-x="1" aria-label="x" tabindex="1"/>',
    '<g id="&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"/>',
    "<text>&lt;script&gt;alert(1)&lt;/script&gt;</text>",
    "<g/>&lt;script&gt;alert(1)&lt;/script&gt;",
    '<path d="&quot;/&gt;&lt;script&gt;alert(1)&lt;/script&gt;"/>',
    "<!-- --><script>alert(1)</script><!-- -->",
    "<?xml-stylesheet href='https://evil.example/x.css'?>",
    "<metadata>https://evil.example</metadata>",
    '<filter><feImage href="https://evil.example/x.png"/></filter>',
    "<title>a&lt;/title&gt;&lt;script&gt;</title>",
]


class Page(HTMLParser):
    """What a browser makes of the element: every tag and attribute."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.mark.parametrize("content", BAD)
@pytest.mark.parametrize(
    "place", ["{}", '<g id="a">{}</g>', "<defs><g>{}</g></defs>", "<text>{}</text>"]
)
def test_nothing_runs_and_nothing_is_fetched(content: str, place: str) -> None:
    html = inline(f"{HEAD} onload='alert(1)'>{place.format(content)}</svg>", "fig1", "title")
    page = Page(html)
    allowed = {"svg", "g", "defs", "text", "path", "rect", "use", "image", "title"}
    assert set(page.tags) <= allowed
    for name, value in page.attributes:
        assert not name.startswith(("on", "data-", "xmlns")), name
        assert name not in ("class", "tabindex", "src"), name
        assert "evil" not in value
        assert "javascript" not in value
        assert "url(" not in re.sub(r"url\(#fig1-[\w.:-]+\)", "", value.lower())
    hrefs = [value for name, value in page.attributes if "href" in name]
    assert all(value.startswith("#fig1-") for value in hrefs)
    assert "evil" not in html
    assert "<script" not in html
    ElementTree.fromstring(html)


@pytest.mark.parametrize(
    "svg",
    [
        "",
        "no drawing",
        "<svg",
        "<html/>",
        "<svg/>",
        f"{HEAD}><g></svg>",
        f'<!DOCTYPE svg [<!ENTITY a "aaaa">]>{HEAD}>&a;</svg>',
        f'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>{HEAD}><text>&a;</text></svg>',
        f"{HEAD}>" + "<g>" * 5000 + "</g>" * 5000 + "</svg>",
        f"{HEAD}>\0</svg>",
    ],
)
def test_what_is_no_drawing_is_named(svg: str) -> None:
    with pytest.raises(RunError, match=r"fig1\.svg: is damaged") as error:
        inline(svg, "fig1", "title")
    assert "\n" not in str(error.value)


def test_uses_of_uses_are_dropped() -> None:
    layers = "".join(
        f'<g id="g{n + 1}"><use href="#g{n}"/><use href="#g{n}"/></g>' for n in range(30)
    )
    html = inline(f'{HEAD}><path id="g0" d="M0 0"/>{layers}</svg>', "n", "t")
    assert html.count('href="#n-g0"') == 2
    assert html.count("href=") == 2


def test_what_matplotlib_draws_is_kept() -> None:
    figure = Figure()
    axes, picture = figure.subplots(1, 2)
    axes.plot([1, 2], [3, 1], "o--", label="a < b & c")
    axes.fill_between([1, 2], [0, 0], [1, 2], alpha=0.3, hatch="/")
    axes.legend()
    picture.imshow([[0, 1], [2, 3]])
    text = io.StringIO()
    figure.savefig(text, format="svg")
    before = ElementTree.fromstring(text.getvalue())
    after = ElementTree.fromstring(inline(text.getvalue(), "n", "t"))
    dropped = ("metadata", "style")

    def bag(root: ElementTree.Element) -> list[tuple[str, int]]:
        skipped = {
            part for old in root.iter() if old.tag.split("}")[-1] in dropped for part in old.iter()
        }
        return [
            (part.tag.split("}")[-1], len(set(part.attrib) - {"id"}))
            for part in list(root.iter())[1:]
            if part not in skipped
        ]

    assert bag(before) == bag(after)
    known = {part.get("id") for part in after.iter()}
    for part in after.iter():
        for value in part.attrib.values():
            for name in re.findall(r"url\(#([^)]+)\)|^#(n-.+)", value):
                assert "".join(name) in known


def test_a_title_cannot_leave_its_attribute() -> None:
    html = inline(f"{HEAD}/>", "n", '"><script>alert(1)</script>')
    assert Page(html).tags == ["svg"]


def test_an_id_stays_where_it_stands_first() -> None:
    html = inline(f'{HEAD}><rect id="a"/><g id="a"><use href="#a"/></g></svg>', "n", "title")
    assert html.count('id="n-a"') == 1
    assert html.index('<rect id="n-a"') < html.index('<use href="#n-a"')


def test_text_of_a_drawing_is_text() -> None:
    with style():
        figure = Figure(figsize=(2, 2))
        figure.subplots().set_title("a < b, $s_{t-1}$")
        svg = io.StringIO()
        figure.savefig(svg, format="svg")
    html = inline(svg.getvalue(), "n", "title")
    texts = re.findall(r"<text.*?</text>", html, flags=re.DOTALL)
    words = [re.sub(r"\s+", "", re.sub(r"<[^>]*>", "", text)) for text in texts]
    assert any("a&lt;b,st" in word for word in words)
    assert "<use" not in "".join(texts)
