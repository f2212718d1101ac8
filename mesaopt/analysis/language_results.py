"""Results of a trained language model on its test sequences: scores, a text continued, its mixers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesaopt.analysis.evaluation import Evaluation
from mesaopt.analysis.given import loaded
from mesaopt.analysis.mixers import MixerMeasurements, measure_mixers
from mesaopt.analysis.token_scores import TokenScore, token_scores
from mesaopt.display import Row, Shown
from mesaopt.errors import wrong_type
from mesaopt.models import LanguageModel, Sampling, generate
from mesaopt.tasks import Text, make_task
from mesaopt.training import Run

_TESTS = Evaluation(num_sequences=256)
_LONGEST_PROMPT = 100
_CONTINUED = 200
_TEMPERATURE = 0.8
_MEASURED = 8


@dataclass(frozen=True)
class TextSample:
    """The beginning of a held-out text, and two ways to go on."""

    prompt: str
    """The beginning."""
    continuation: str
    """The continuation by the model, at temperature 0.8."""
    original: str
    """The continuation in the text itself."""


@dataclass(frozen=True, repr=False)
class LanguageResults(Shown):
    """Results of a language model on test sequences."""

    scores: list[TokenScore]
    """Loss and accuracy for each setting of the tests."""
    mixers: list[MixerMeasurements]
    """Of each layer, on eight sequences."""
    sample: TextSample | None
    """None where the tokens are no text."""

    def _headline(self) -> str:
        lines = [score._headline() for score in self.scores]
        if self.sample is not None:
            lines.append(
                f"After {self.sample.prompt[-20:]!r} it writes {self.sample.continuation[:40]!r}"
            )
        return "\n".join(lines)

    def _rows(self) -> list[Row]:
        return [{"setting": one.setting} | dict(row) for one in self.scores for row in one._rows()]


def language_results(run: Run | str | Path, evaluation: Evaluation = _TESTS) -> LanguageResults:
    """Score a language model on its test sequences, let it go on with one, and measure its mixers.

    Args:
        run: of a language model, or its path.
        evaluation: the sequences that are scored; 256 of each setting if not given.

    Returns:
        What was found.

    Raises:
        TypeError: it is no run, or that of another model.
        ConfigError: the text that it was trained on cannot be read.

    Example:
        >>> import tempfile
        >>> from mesaopt.config import CopyingConfig, LanguageModelConfig, RunConfig, TrainConfig
        >>> from mesaopt.training import train
        >>> model = LanguageModelConfig(vocabulary=30, width=8, num_heads=2, mixers=("mesa",))
        >>> short = TrainConfig(steps=1, batch_size=2, evaluation_sequences=2)
        >>> config = RunConfig(recipe="copy", task=CopyingConfig(), model=model, train=short)
        >>> results = language_results(train(config, tempfile.mkdtemp(), device="cpu", progress=False))
        >>> len(results.scores), len(results.mixers), results.sample
        (1, 1, None)
    """
    given: Any = loaded(run)
    if not isinstance(given, Run) or not isinstance(given.model, LanguageModel):
        raise wrong_type("run", given, "a Run of a language model, or its path")
    task: Any = make_task(given.config.task)
    scores = token_scores({"": given.model}, task, evaluation)[""]
    few = task.sample(_MEASURED, seed=evaluation.seed, split="test")
    sample = _continue(given.model, task) if isinstance(task, Text) else None
    return LanguageResults(scores, measure_mixers(given.model, few), sample)


def _continue(model: LanguageModel, task: Text) -> TextSample:
    """Let a model go on with the first half of a stretch of held-out text, or with its beginning."""
    text = task.sample(1, seed=0, split="test").tokens[0].tolist()
    size = min(_LONGEST_PROMPT, -(-len(text) // 2))
    prompt, rest = text[:size], text[size : size + _CONTINUED]
    sampling = Sampling(temperature=_TEMPERATURE, seed=0)
    (written,) = generate(model, [prompt], _CONTINUED, sampling=sampling).tokens.tolist()
    return TextSample(*map(task.decode, (prompt, written, rest)))
