"""Interactive figures of a page: their numbers, checked one by one, and the script that draws them."""

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from markupsafe import Markup

from mesaopt import json_files
from mesaopt.errors import RunError
from mesaopt.looks import LOOKS, Look
from mesaopt.papers.rows import Rows, read_table

LAYER = "layer"
"""The one widget there is: a linear layer while it trains, and in two dimensions."""

_SAVED = {
    "steps": [int],
    "step_size": float,
    "ridge": float,
    "dim": int,
    "heads": int,
    "clip": (float, None),
    "scored": [str],
    "written": [str],
    "toy_scored": [str],
    "toy_written": [str],
}
_LIMITS = {"steps": (1, 64), "dim": (2, 32), "heads": (1, 16), "positions": (2, 1000)}
_LARGEST = 1e30
_IDEAS = {"layer": "1 linear layer", "descent": "gradient descent", "ridge": "least squares"}
_PREDICTORS = {"descent": "one gradient step", "ridge": "least squares"}


def script() -> str:
    """Return the script of a page with widgets."""
    return (resources.files("mesaopt.report") / "widget.js").read_text(encoding="utf-8")


def script_hash() -> str:
    """Return the script's hash, as a content security policy names it."""
    digest = hashlib.sha256(script().encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def layer_data(description: Any, csv: str, path: str) -> Markup:
    """Check the numbers of the widget "layer", and write them as JSON for the page.

    Only numbers are taken over: no word of the files reaches the page.

    Args:
        description: of the figure, as saved, with a panel "layer".
        csv: its table: losses by position after every step, and of the algorithms.
        path: of both files, without their endings, for messages.

    Returns:
        JSON, without characters that end a script.

    Raises:
        RunError: something is not as it must be.

    Example:
        >>> layer_data({"panels": {"layer": {"more": {"steps": []}}}}, "", "a")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: a.json: is damaged: panels.layer.more.step_size is missing
    """
    where = f"{path}.json"
    json_files.check(description, {"panels": {LAYER: {"more": _SAVED}}}, where)
    saved = description["panels"][LAYER]["more"]
    steps, dim, heads = saved["steps"], saved["dim"], saved["heads"]
    for name, value in (("steps", len(steps)), ("dim", dim), ("heads", heads)):
        _require_between(value, name, where)
    data = {name: saved[name] for name in ("steps", "step_size", "ridge", "dim", "heads", "clip")}
    sizes = {"scored": (2 * dim) ** 2, "written": 2 * dim**2}
    sizes |= {"toy_scored": 16 * heads, "toy_written": 8 * heads}
    for name, size in sizes.items():
        if len(saved[name]) != len(steps):
            _refuse(where, f"{name}: must have a text for each of {len(steps)} steps")
        data[name] = [_numbers(text, size, name, where) for text in saved[name]]
    data["losses"] = _losses(read_table(csv, f"{path}.csv"), steps, f"{path}.csv")
    data["looks"] = {name: _look(LOOKS[idea]) for name, idea in _IDEAS.items()}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _require_between(value: int, name: str, where: str) -> None:
    least, most = _LIMITS[name]
    if not least <= value <= most:
        _refuse(where, f"{name}: there are {value}: must be {least} to {most}")


def _refuse(where: str, problem: str) -> None:
    raise RunError(f"{where}: is damaged: {problem}")


def _numbers(text: str, size: int, name: str, where: str) -> list[float]:
    """Read numbers with spaces between them."""
    try:
        values = [float(part) for part in text.split()]
    except ValueError:
        values = []
    if len(values) != size or not all(abs(value) < _LARGEST for value in values):
        _refuse(where, f"{name}: must be texts of {size} ordinary numbers")
    return values


def _losses(rows: Rows, steps: list[int], where: str) -> dict[str, Any]:
    """Give positive losses by position: of the layer after each step, and of the algorithms."""
    curves: dict[Any, list[Any]] = {}
    for row in rows:
        curves.setdefault(row.get("predictor"), []).append(row.get("loss"))
    names = [f"step {step}" for step in steps]
    length = len(curves.get(names[0], []))
    _require_between(length, "positions", where)
    for name in (*names, *_PREDICTORS.values()):
        curve = curves.get(name, [])
        positive = all(type(x) in (int, float) and 1 / _LARGEST < x < _LARGEST for x in curve)
        if not positive or len(curve) != length:
            _refuse(where, f"losses of {name!r}: must be {length} positive numbers")
        curves[name] = [float(f"{x:.4g}") for x in curve]
    algorithms = {key: curves[name] for key, name in _PREDICTORS.items()}
    return {"layer": [curves[name] for name in names], **algorithms}


def _look(look: Look) -> dict[str, str]:
    dashes = "" if look.dashes == "solid" else " ".join(f"{2 * x:g}" for x in look.dashes[1])
    return {"color": look.color, "dashes": dashes}
