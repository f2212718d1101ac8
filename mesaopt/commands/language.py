"""Commands of language models: `generate`, `bench generate`."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from mesaopt import arguments as args
from mesaopt.config import TaskConfig, TextConfig, require_count
from mesaopt.console import print_json, print_line, print_table
from mesaopt.errors import ConfigError, RunError

if TYPE_CHECKING:
    from mesaopt.models import LanguageModel
    from mesaopt.training import Run


class _Tokenizer(Protocol):
    @property
    def unknown(self) -> int | None: ...

    def encode(self, text: bytes) -> Any: ...

    def decode(self, tokens: Iterable[int]) -> str: ...


def generate(command: args.Generate) -> int:
    """Print continuations of a prompt."""
    require_count("tokens", command.tokens, smallest=1, largest=10**7)
    require_count("samples", command.samples, smallest=1, largest=10**4)
    if not command.prompt:
        raise ConfigError("prompt: is empty: must be one token or more")
    from mesaopt import zoo
    from mesaopt.models import Sampling, beam_search
    from mesaopt.models import generate as continue_texts
    from mesaopt.training import load_run

    sampling = Sampling(
        temperature=command.temperature,
        top_k=command.top_k,
        top_p=command.top_p,
        seed=command.seed,
    )
    run = load_run(zoo.locate(command.path), device=command.device)
    model, tokenizer = _language_model(run), tokenizer_of(run.config.task)
    prompt = _tokens_of(command.prompt, tokenizer, run.config.task.dim)
    if command.beams is None:
        prompts = [prompt] * command.samples
        found = continue_texts(model, prompts, command.tokens, sampling=sampling)
    else:
        found = beam_search(model, [prompt], command.tokens, beams=command.beams)
    texts = [tokenizer.decode([*prompt, *row]) for row in found.tokens.tolist()]
    likelihoods = found.log_probability.tolist()
    if command.json:
        rows = zip(texts, found.tokens.tolist(), likelihoods, strict=True)
        names = ("text", "tokens", "log_probability")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
        return 0
    for number, text in enumerate(texts):
        if len(texts) > 1:
            nats = f"log-probability {likelihoods[number]:.2f}"
            print_line(f"--- {number + 1} of {len(texts)}, {nats} ---")
        print(text)
    return 0


def _language_model(run: "Run") -> "LanguageModel":
    from mesaopt.models import LanguageModel

    if not isinstance(run.model, LanguageModel) or run.config.model.kind != "language":
        kind = run.config.model.kind
        raise RunError(f"{run.path}: holds a {kind!r} model: must be a 'language' model")
    return run.model


def tokenizer_of(task: TaskConfig) -> _Tokenizer:
    """Load the tokenizer of a text; tokens of other tasks are written as numbers."""
    if not isinstance(task, TextConfig):
        return _Numbers()
    from mesaopt import corpus

    return corpus.tokenizer_of(task)


class _Numbers:
    """Tokens as whole numbers with spaces between them."""

    unknown = None

    def encode(self, text: bytes) -> list[int]:
        try:
            return [int(word) for word in text.split()]
        except ValueError:
            wanted = "whole numbers with spaces between them, since its tokens are no text"
            raise ConfigError(
                f"prompt={text.decode(errors='replace')!r}: must be {wanted}"
            ) from None

    def decode(self, tokens: Iterable[int]) -> str:
        return " ".join(map(str, tokens))


def _tokens_of(prompt: str, tokenizer: _Tokenizer, vocabulary: int) -> list[int]:
    """Turn a prompt into tokens, without the one that ends a document, and refuse unknown ones."""
    end = len(tokenizer.encode(b""))
    # What was typed in another encoding than UTF-8 comes as surrogates: the bytes as they were typed.
    typed = prompt.encode(errors="surrogateescape")
    tokens = [int(token) for token in tokenizer.encode(typed)]
    tokens = tokens[: len(tokens) - end]
    if not tokens:
        raise ConfigError(f"prompt={prompt!r}: has no token: must be one token or more")
    if tokenizer.unknown in tokens:
        problem = "has a part that the tokenizer does not know: must be of its tokens"
        raise ConfigError(f"prompt={prompt!r}: {problem}")
    for token in tokens:
        if not 0 <= token < vocabulary:
            problem = f"has the token {token}: must be from 0 to {vocabulary - 1}"
            raise ConfigError(f"prompt={prompt!r}: {problem}")
    return tokens


def bench_generation(*, quick: bool, json: bool) -> int:
    """Print the time of a token and the size of the state, early and late in a text."""
    from mesaopt.bench.generate import EARLY, LATE, QUICK_LATE, measure_generation

    late = QUICK_LATE if quick else LATE
    rows = measure_generation(late=late)
    if json:
        print_json([asdict(row) | {"late_over_early": row.slowdown} for row in rows])
        return 0
    title = f"one text, one thread; early: behind {EARLY} tokens, late: behind {late:,}"
    print_table(title, [row.describe() for row in rows])
    return 0
