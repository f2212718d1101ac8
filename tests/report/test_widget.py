import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, DRIVER, MISSING, Browser, browser

from mesaopt import zoo
from mesaopt.analysis import model_predictor
from mesaopt.errors import RunError
from mesaopt.papers.matrices import sum_over_heads
from mesaopt.papers.reproduce import redraw, reproduce
from mesaopt.papers.rows import read_table, table
from mesaopt.papers.uncovering2023.core_training import layer_numbers
from mesaopt.report import write_report
from mesaopt.report.widget import layer_data, script, script_hash
from mesaopt.tasks import Batch
from mesaopt.theory import gradient_descent, ridge_least_squares

NAME = "core-training"
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figure, measured on the checkpoints of the zoo."""
    out = tmp_path_factory.mktemp("training") / "results"
    reproduce("core/training", scale="smoke", out=out, device="cpu", runs=zoo.folder())
    return out


@pytest.fixture(scope="module")
def saved(results: Path) -> dict[str, Any]:
    """The numbers of the widget, as saved."""
    description = json.loads((results / "figures" / f"{NAME}.json").read_text())
    return description["panels"]["layer"]["more"]


@pytest.fixture
def folder(results: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(results, tmp_path / "results"))


def change(folder: Path, **values: object) -> None:
    path = folder / "figures" / f"{NAME}.json"
    description = json.loads(path.read_text())
    description["panels"]["layer"]["more"] |= values
    path.write_text(json.dumps(description))


def only_checkpoint(folder: Path) -> None:
    """Keep the last checkpoint alone, as a run has that kept no others."""
    path = folder / "figures" / f"{NAME}.json"
    more = json.loads(path.read_text())["panels"]["layer"]["more"]
    one = {name: value[-1:] for name, value in more.items() if isinstance(value, list)}
    change(folder, **one)


def test_the_slider_has_checkpoints_from_the_first_to_the_last(saved: dict[str, Any]) -> None:
    steps = saved["steps"]
    assert set(steps) <= {*zoo.get("lsa-1").steps}
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 3500)
    assert 10 <= len(steps) <= 20


def test_weights_and_losses_are_those_of_the_checkpoints(
    results: Path, saved: dict[str, Any]
) -> None:
    place = saved["steps"].index(400)
    layer = zoo.load("lsa-1", step=400).sequence_model.mixers[0]
    key_query, output_value = (x.detach().numpy() for x in layer.head_products())
    # slots of a token: the prediction, an empty one, the current state, the previous one
    sums = sum_over_heads(key_query, output_value, blocks=4, scored=(3, 2), written=(0, 2))
    scored, written = (np.array(saved[n][place].split(), float) for n in ("scored", "written"))
    np.testing.assert_allclose(scored.reshape(20, 20), sums[0][20:, 20:], rtol=6e-3)
    np.testing.assert_allclose(written.reshape(10, 20), sums[1][:10, 20:], rtol=6e-3)
    # The pictures leave out nothing of weight.
    assert np.abs(sums[0][:20]).max() < 0.005 * np.abs(scored).max()
    rows = read_table((results / "figures" / f"{NAME}.csv").read_text())
    means = {
        name: np.mean([row["loss"] for row in rows if row["predictor"] == name])
        for name in ("step 0", "step 400", "step 3500", "one gradient step")
    }
    assert means["step 0"] > 1.5
    assert means["step 400"] == pytest.approx(0.9128, abs=0.05)
    assert means["step 3500"] == pytest.approx(means["one gradient step"], rel=0.02)


def test_the_page_has_numbers_and_the_script_of_the_package(results: Path) -> None:
    html = write_report(results).read_text()
    numbers, own = re.findall(r"<script[^>]*>(.*?)</script>", html, flags=re.DOTALL)
    assert own == script()
    assert "<" not in numbers
    assert json.loads(numbers)["steps"][-1] == 3500
    assert f'img-src data:; script-src {script_hash()}">' in unescape(html)
    assert "<noscript>" in html
    assert '<details class="still" open>' in html, "a picture without scripts"


def test_a_page_without_a_widget_runs_no_script(folder: Path) -> None:
    path = folder / "figures" / f"{NAME}.json"
    for widget in ("", "other", '"><script>alert(1)</script>'):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"widget": widget}))
        html = write_report(folder).read_text()
        assert "<script" not in html
        assert "script-src" not in html


DAMAGED: list[dict[str, Any]] = [
    {"steps": []},
    {"steps": ["0"]},
    {"steps": list(range(100))},
    {"steps": [0]},
    {"dim": 10.5},
    {"dim": 1},
    {"dim": 10**6},
    {"dim": 9},
    {"heads": 0},
    {"heads": 3},
    {"step_size": None},
    {"step_size": "</script><script>alert(1)</script>"},
    {"ridge": float("nan")},
    {"clip": "4"},
    {"scored": []},
    {"scored": [["<b>"]]},
    {"written": ["1 2 3"]},
    {"toy_scored": "1"},
]


@pytest.mark.parametrize("values", DAMAGED, ids=str)
def test_damaged_numbers_are_named_in_one_line(folder: Path, values: dict[str, Any]) -> None:
    change(folder, **values)
    with pytest.raises(RunError, match=rf"{NAME}\.json: is damaged: ") as error:
        write_report(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("word", ["</script><script>alert(1)</script>", "nan", "inf", "1e999", ""])
def test_only_numbers_reach_the_page(folder: Path, word: str, saved: dict[str, Any]) -> None:
    for name in ("scored", "written", "toy_scored", "toy_written"):
        texts = [*saved[name][:-1], saved[name][-1].rpartition(" ")[0] + f" {word}"]
        change(folder, **{name: texts})
        with pytest.raises(RunError, match=rf"json: is damaged: {name}: must be texts of"):
            write_report(folder)
        change(folder, **{name: saved[name]})
    change(folder, **({"more": word} | {word: word}))
    assert "alert" not in write_report(folder).read_text()
    csv = folder / "figures" / f"{NAME}.csv"
    csv.write_text(re.sub("step 400,10,[^,]*,", f"step 400,10,{word},", csv.read_text()))
    with pytest.raises(RunError, match=rf"{NAME}\.csv: is damaged: "):
        write_report(folder)


def test_a_folder_that_lacks_the_panel_is_damaged(folder: Path) -> None:
    path = folder / "figures" / f"{NAME}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"panels": {}}))
    with pytest.raises(RunError, match=r"json: is damaged: panels\.layer is missing"):
        write_report(folder)


def test_numbers_that_json_cannot_hold_are_refused(saved: dict[str, Any]) -> None:
    rows = [{"predictor": f"step {step}", "loss": 10**400} for step in saved["steps"]] * 2
    with pytest.raises(RunError, match=r"a\.csv: .* must be 2 positive numbers"):
        layer_data({"panels": {"layer": {"more": saved}}}, table(rows), "a")


@pytest.mark.parametrize("text", ["a,b\n1\n", "a\n1,2\n", "a\n\0", "a" * 200_000, ""])
def test_a_damaged_table_is_named(folder: Path, text: str) -> None:
    (folder / "figures" / f"{NAME}.csv").write_text(text)
    with pytest.raises(RunError, match=rf"{NAME}\.csv: is damaged: "):
        write_report(folder)


def test_one_checkpoint_is_drawn_too(folder: Path) -> None:
    only_checkpoint(folder)
    redraw(folder)
    assert "step 3,500" in (folder / "figures" / f"{NAME}.svg").read_text()
    assert '"steps":[3500]' in write_report(folder).read_text()


def test_the_toy_has_the_weights_of_the_first_two_coordinates() -> None:
    run = zoo.load("lsa-1")
    scored = np.array(layer_numbers([run])["toy_scored"][0].split(), np.float32)
    products = run.sequence_model.mixers[0].head_products()[0].detach().numpy()
    few = [20, 21, 30, 31]
    np.testing.assert_array_equal(scored.reshape(2, 4, 4), products[:, few][:, :, few])


@pytest.fixture(scope="module")
def window(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    page = write_report(results)
    with browser(tmp_path_factory.mktemp("browser") / "profile") as window:
        window.resize(1280)
        window.open(page)
        yield window
        assert window.errors() == []


def text(window: Browser, selector: str) -> str:
    return window.run("return document.querySelector(arguments[0]).textContent", selector)


def press(window: Browser, key: str) -> None:
    for kind in ("rawKeyDown", "keyUp"):
        window.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, **KEYS[key])


KEYS = {"Home": {"windowsVirtualKeyCode": 36}, "ArrowRight": {"windowsVirtualKeyCode": 39}}


@pytest.mark.browser
@needs_browser
def test_the_slider_moves_weights_and_losses_together(
    window: Browser, results: Path, saved: dict[str, Any], tmp_path: Path
) -> None:
    page = json.loads(re.findall(r"<script[^>]*>(.*?)</script>", html_of(results))[0])
    assert text(window, ".step").startswith("3,500 · mean loss 0.8")
    last = state(window)
    # from the last checkpoint to the first and on to the middle
    ends = [window.place(".controls input", x) for x in (0.99, 0.01, 0.5)]
    window.drag(*ends)
    chosen = window.run("return Number(document.querySelector('.controls input').value)")
    assert 0 < chosen < len(page["steps"]) - 1
    moved = state(window)
    assert moved["path"] != last["path"]
    assert moved["fill"] != last["fill"]
    loss = np.mean(page["losses"]["layer"][chosen])
    assert moved["text"] == f"{page['steps'][chosen]:,} · mean loss {loss:.3g}"
    window.hover(window.place(".chart svg", (34 + 9 / 49 * 358) / 400, 0.5))
    wanted = page["losses"]["layer"][chosen][9]
    assert text(window, ".chart .readout").startswith(f"Position 10: trained layer {wanted:.3g},")
    # first row of the block of previous states, first column of that of current ones
    window.hover(window.place(".picture svg", (76 + 7) / 400, (2 + 140 + 7) / 334))
    wanted = float(saved["scored"][chosen].split()[10 * 20])
    shown = text(window, ".picture .readout").replace("−", "-")
    assert shown == f"Row previous 1, column current 1: {js(wanted)}"
    assert window.screenshot(tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.browser
@needs_browser
def test_the_slider_obeys_the_keyboard(window: Browser, saved: dict[str, Any]) -> None:
    window.run("document.querySelector('.controls input').focus()")
    press(window, "Home")
    assert text(window, ".step").startswith("0 · mean loss 1.")
    press(window, "ArrowRight")
    assert text(window, ".step").startswith(f"{saved['steps'][1]} · ")
    said = window.run(
        "return document.querySelector('.controls input').getAttribute('aria-valuetext')"
    )
    assert said.startswith(f"step {saved['steps'][1]}, mean loss ")
    assert window.run("return document.querySelector('.controls label').innerText") == (
        "Training step"
    )


@pytest.mark.browser
@needs_browser
def test_points_are_continued_as_python_does(window: Browser, saved: dict[str, Any]) -> None:
    click(window, "Clear")
    assert text(window, ".value-layer") == " trained layer: needs two points"
    places = [(0.8, 0.5), (0.6, 0.1), (0.2, 0.3), (0.15, 0.7), (0.55, 0.9)]
    for share in places:
        window.drag(window.place(".plane", *share))
    assert window.run("return document.querySelectorAll('.plane .point').length") == 5
    window.run(
        "const [x, y] = document.querySelectorAll('.buttons input'); x.value = 2; y.value = 1"
    )
    click(window, "Put point")
    points = torch.tensor(read_points(window), dtype=torch.float32)
    assert torch.allclose(points[-1], torch.tensor([2.0, 1.0]))
    assert torch.allclose(points[0], torch.tensor([1.8, 0.0]), atol=2e-2)
    for place, step in ((0, saved["steps"][0]), (-1, 3500)):
        index = place % len(saved["steps"])
        window.run(
            """const input = document.querySelector('.controls input');
            input.value = arguments[0]; input.dispatchEvent(new Event('input'));""",
            index,
        )
        for name, wanted in expected(points, step, saved).items():
            x, y = exact = next_point(window, name)
            assert exact == pytest.approx(wanted, rel=1e-4, abs=1e-6), (name, step)
            shown = f"({x:.2f}, {y:.2f})".replace("-0.00", "0.00")
            assert shown in text(window, f".value-{name}").replace("−", "-")
    click(window, "Undo")
    assert window.run("return document.querySelectorAll('.plane .point').length") == 5


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_or_small(
    window: Browser, width: int, scheme: str, tmp_path: Path
) -> None:
    window.resize(width)
    window.prefer(scheme)
    found = window.run(
        """const box = e => e.getBoundingClientRect();
        const all = selector => [...document.querySelectorAll(`.interactive ${selector}`)];
        return {
          overflow: document.documentElement.scrollWidth > innerWidth,
          small: all("svg text").map(e => box(e).height).filter(h => h < 8),
          outside: all("svg text").filter(e => {
            const own = box(e), frame = box(e.closest("svg"));
            return own.left < frame.left - 1 || own.right > frame.right + 1;
          }).map(e => e.textContent),
          still: document.querySelector(".still").open,
        };"""
    )
    window.place(".controls")
    window.screenshot(tmp_path / f"{width}-{scheme}.png")
    window.resize(1280)
    window.prefer("light")
    assert found == {"overflow": False, "small": [], "outside": [], "still": False}


@pytest.mark.browser
@needs_browser
def test_without_scripts_there_is_the_picture(results: Path, tmp_path: Path) -> None:
    page = write_report(results)
    with browser(tmp_path / "profile", scripts=False) as window:
        window.open(page)
        window.screenshot(tmp_path / "page.png")
        found = window.run(
            """return ["noscript", ".still .drawing", ".interactive"].map(
              selector => document.querySelector(selector).getBoundingClientRect().height > 5);"""
        )
    assert found == [True, True, False]


@pytest.mark.browser
@needs_browser
def test_one_checkpoint_has_a_plane_but_no_slider(folder: Path, tmp_path: Path) -> None:
    only_checkpoint(folder)
    page = write_report(folder)
    with browser(tmp_path / "profile") as window:
        window.open(page)
        assert window.run("return document.querySelector('.controls input')") is None
        assert text(window, ".step").startswith("3,500 · mean loss 0.8")
        window.drag(window.place(".plane", 0.2, 0.2))
        assert window.run("return document.querySelectorAll('.plane .point').length") == 7
        assert window.errors() == []


def html_of(results: Path) -> str:
    return (results / "index.html").read_text()


def state(window: Browser) -> dict[str, str]:
    """The text of the slider, the line of losses, and the colour of one weight."""
    return window.run(
        """const one = selector => document.querySelector(selector);
        return {text: one(".step").textContent, path: one(".line-layer").getAttribute("d"),
                fill: document.querySelectorAll(".picture rect")[200].getAttribute("fill")};"""
    )


def click(window: Browser, label: str) -> None:
    window.run(
        """[...document.querySelectorAll(".interactive button")]
        .find(e => e.textContent === arguments[0]).click()""",
        label,
    )


def read_points(window: Browser) -> list[list[float]]:
    """The points, off their places in the drawing, which is 360 wide for -3 to 3."""
    return window.run(
        """return [...document.querySelectorAll(".plane .point")].map(
          e => [e.getAttribute("cx") / 60 - 3, 3 - e.getAttribute("cy") / 60])"""
    )


def next_point(window: Browser, name: str) -> list[float]:
    """What a predictor says, with all digits."""
    script = "return document.querySelector(arguments[0]).dataset.next.split(',').map(Number)"
    return window.run(script, f".value-{name}")


def js(value: float) -> str:
    """A number of three digits, as the page writes it."""
    return np.format_float_positional(float(f"{value:.3g}"), trim="-")


def expected(points: torch.Tensor, step: int, saved: dict[str, Any]) -> dict[str, list[float]]:
    """The next point by the functions of the package; the layer has eight coordinates at zero."""
    states = torch.zeros(1, len(points) + 1, 10)
    states[0, :-1, :2] = points
    run = zoo.load("lsa-1", step=step)
    batch = Batch(states[:, :-1], states[:, 1:], states, torch.zeros(1, 10, 10))
    predictions = {
        "layer": model_predictor(run.model, run.config.task.token_slots)(batch),
        "descent": gradient_descent(batch.observed, step_size=saved["step_size"]),
        "ridge": ridge_least_squares(batch.observed, ridge=saved["ridge"]),
    }
    return {name: one[0, len(points) - 1, :2].tolist() for name, one in predictions.items()}
