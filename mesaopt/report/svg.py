"""Drawings for a page: an SVG file is read as data, and only what draws is written out again."""

import re
from collections.abc import Iterator
from html import escape
from xml.etree import ElementTree

from mesaopt.errors import RunError

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"

# The colours that figures are drawn in and the page's own, which follow its light or dark scheme.
_PAGE_COLORS = {"#1b1f24": "var(--ink)", "#d8dce2": "var(--grid)"}

_SHAPE = re.compile("path|rect|circle|ellipse|line|polyline|polygon")
_ELEMENT = re.compile(
    _SHAPE.pattern
    + "|svg|g|defs|use|image|text|tspan|clipPath|mask|pattern|marker|stop|(linear|radial)Gradient"
)
# Presentation attributes, which are also the properties that a style may set.
_PROPERTY = re.compile(
    "clip-(path|rule)|color|dominant-baseline|fill(-opacity|-rule)?"
    "|font(-family|-size|-stretch|-style|-variant|-weight)?|(image|shape|text)-rendering"
    "|(letter|word)-spacing|marker-(end|mid|start)|mask|opacity|stop-(color|opacity)"
    "|stroke(-dasharray|-dashoffset|-linecap|-linejoin|-miterlimit|-opacity|-width)?"
    "|text-anchor|vector-effect|visibility"
)
_ATTRIBUTE = re.compile(
    _PROPERTY.pattern
    + "|d|points|transform|rotate|offset|orient|preserveAspectRatio|version|viewBox"
    "|width|height|x|x1|x2|y|y1|y2|cx|cy|dx|dy|fx|fy|r|rx|ry|refX|refY|spreadMethod|textLength"
    "|clipPathUnits|gradient(Transform|Units)|marker(Height|Units|Width)|pattern(ContentUnits|Transform|Units)"
)
_NAME = re.compile(r"[\w.:-]+")
_PLAIN = re.compile(r"[\w\s.,#%()'\"+-]*")
_REFERENCE = re.compile(r"url\(\s*['\"]?#([\w.:-]+)['\"]?\s*\)")
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]*")


def inline(svg: str, name: str, title: str) -> str:
    """Prepare a drawing for a page: colours that follow its scheme, ids that no other drawing has.

    Only elements and attributes that draw are kept: no scripts, no event handlers, no style sheets, and
    no references but to parts of the drawing itself and to pictures inside it.

    Args:
        svg: the drawing, as anyone may have written it.
        name: unique on the page.
        title: read out by screen readers.

    Returns:
        The element.

    Raises:
        RunError: it is not an SVG drawing.

    Example:
        >>> svg = '<svg xmlns="http://www.w3.org/2000/svg" onload="f()"><g id="a"/></svg>'
        >>> print(inline(svg, "b", "c"))
        <svg role="img" aria-label="c" stroke-linejoin="round" stroke-linecap="butt"><g id="b-a"></g></svg>
    """
    try:
        if "<!entity" in svg.lower():
            raise RunError(f"{name}.svg: is damaged: defines entities")
        root = ElementTree.fromstring(svg)
        if root.tag != f"{_SVG}svg":
            raise RunError(f"{name}.svg: is damaged: is not an SVG drawing")
        _drop_repeated_ids(root)
        shapes = {p.get("id", "") for p in root.iter() if _SHAPE.fullmatch(_tag(p))}
        inside = "".join(_contents(root, name, shapes))
    except (ElementTree.ParseError, RecursionError, ValueError) as error:
        raise RunError(f"{name}.svg: is damaged: is not an SVG drawing: {error}") from None
    # Matplotlib's style sheet says this of every element.
    first = f'role="img" aria-label="{escape(title)}" stroke-linejoin="round" stroke-linecap="butt"'
    attributes = "".join(_attributes(root, "svg", name, shapes))
    return f"<svg {first}{attributes}>{inside}</svg>"


def _drop_repeated_ids(root: ElementTree.Element) -> None:
    """Keep an id where it stands first, as a reference would find it; equal pictures have equal ids."""
    seen: set[str] = set()
    for element in root.iter():
        if element.get("id", "") in seen:
            del element.attrib["id"]
        seen |= {element.get("id", "")} - {""}


def _contents(element: ElementTree.Element, name: str, shapes: set[str]) -> Iterator[str]:
    """Write what is inside an element: its text, its children, and the text between them."""
    yield escape(element.text or "")
    for child in element:
        tag = _tag(child)
        if _ELEMENT.fullmatch(tag):
            yield f"<{tag}{''.join(_attributes(child, tag, name, shapes))}>"
            yield from _contents(child, name, shapes)
            yield f"</{tag}>"
        yield escape(child.tail or "")


def _tag(element: ElementTree.Element) -> str:
    """Return the name of an SVG element; of other elements, nothing."""
    space, name = str(element.tag)[: len(_SVG)], str(element.tag)[len(_SVG) :]
    return name if space == _SVG else ""


def _attributes(
    element: ElementTree.Element, tag: str, name: str, shapes: set[str]
) -> Iterator[str]:
    for key, value in element.items():
        if key in ("href", f"{_XLINK}href"):
            key, value = "href", _link(value, tag, name, shapes)
        elif key == "id":
            value = f"{name}-{value}" if _NAME.fullmatch(value) else None
        elif key == "style":
            value = _style(value, name)
        elif _ATTRIBUTE.fullmatch(key):
            value = _value(value, name)
        else:
            continue
        if value is not None:
            yield f' {key}="{escape(value)}"'


def _link(value: str, tag: str, name: str, shapes: set[str]) -> str | None:
    """Keep pictures in the drawing, and uses of single shapes: uses of uses could grow for ever."""
    if tag == "image":
        picture = "".join(value.split())
        return picture if _PICTURE.fullmatch(picture) else None
    if (
        tag == "use"
        and value.startswith("#")
        and value[1:] in shapes
        and _NAME.fullmatch(value[1:])
    ):
        return f"#{name}-{value[1:]}"
    return None


def _style(value: str, name: str) -> str:
    """Keep the properties of a style that draw."""
    pairs = (declaration.partition(":") for declaration in value.split(";"))
    kept = ((key.strip(), _value(text.strip(), name)) for key, _, text in pairs)
    return "; ".join(f"{key}: {text}" for key, text in kept if _PROPERTY.fullmatch(key) and text)


def _value(value: str, name: str) -> str | None:
    """Keep plain values, with references to parts of the drawing alone."""
    rest = _REFERENCE.sub("", value)
    if not _PLAIN.fullmatch(rest) or "url" in rest.lower():
        return None
    value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    for drawn, page in _PAGE_COLORS.items():
        value = value.replace(drawn, page)
    return value
