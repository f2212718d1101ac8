"""The example of a language model trains, and its states are all that it needs to write."""

import math
import runpy
from pathlib import Path

import pytest
import torch

from mesaopt.models.mixers import MIXERS

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "char_lm.py"))
TINY = ["--width", "16", "--depth", "1", "--length", "16", "--batch", "4"]
SHORT = ["--steps", "20", "--lr", "0.03", "--write", "12"]


def test_it_trains_and_writes(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        chosen = ["--layer", "linear_attention", "--prompt", "class "]
        loss = EXAMPLE["main"]([*TINY, *SHORT, *chosen])
    assert loss < math.log(len(EXAMPLE["CHARACTERS"])) - 0.3, "better than any character equally"
    progress, written = capsys.readouterr().out.split("class ")
    assert progress.count("step") == 10
    assert len(written) == 12 + 1  # and the end of the line


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 19, 20])
def test_it_takes_any_number_of_steps(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = EXAMPLE["encode"]("import sys\n" * 10)
    names = EXAMPLE["main"].__globals__
    monkeypatch.setitem(names, "read_corpus", lambda: (text, text))
    with torch.random.fork_rng():
        chosen = ["--layer", "linear_attention", "--write", "1", "--steps", str(steps)]
        assert math.isfinite(EXAMPLE["main"]([*TINY, *chosen]))


@pytest.mark.parametrize("prompt", ["", "é", "\t"])
def test_a_prompt_without_known_characters_is_refused(
    prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        EXAMPLE["main"]([*TINY, "--steps", "1", "--prompt", prompt])
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert "--prompt: must have a letter, a digit or a sign of ASCII" in shown.err
    assert not shown.out


@pytest.mark.parametrize("layer", MIXERS)
def test_states_are_all_it_needs_to_go_on(layer: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EXAMPLE["CharacterModel"](layer, width=16, depth=2).double()
    text = EXAMPLE["encode"]("import sys\n\ndef main():")[None]
    whole, _ = model(text)
    parts, states = [], None
    for part in text.split([9, *[1] * 14], dim=1):
        logits, states = model(part, states)
        parts.append(logits)
    # Some ten sums of 16 products in a row, enlarged by systems of a condition number below 1e3.
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-9, atol=1e-10)


def test_characters_keep_their_order() -> None:
    text = "def f(x):\n    return '~' # \t\u20ac"
    numbers = EXAMPLE["encode"](text)
    assert "".join(EXAMPLE["CHARACTERS"][i] for i in numbers) == text[:-2]
