"""The authors' JAX code next to this package: training steps of both, in turns on one machine."""

import contextlib
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from mesaopt import files
from mesaopt.bench import official_process
from mesaopt.config import LinearSystemConfig, ModelConfig, RunConfig
from mesaopt.errors import ConfigError, RunError

_ROUNDS, _WARM_UP = 7, 3
_FIRST_MIXERS = {"linear_attention", "softmax_attention"}
_MIXERS = _FIRST_MIXERS | {"mesa"}


@dataclass(frozen=True, kw_only=True)
class OfficialCode:
    """The place of the authors' code, and the program that runs it."""

    clone: Path
    """Of github.com/mtavit/transformers_mesa_optimization_paper."""
    python: Path
    """An interpreter that has jax, flax, optax and ml_collections."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Times of a step in milliseconds, one of each kind per round, batches included."""

    ours: list[float]
    official: list[float]

    @property
    def ratios(self) -> list[float]:
        """Our time over theirs, by round."""
        return [a / b for a, b in zip(self.ours, self.official, strict=True)]

    def describe(self) -> list[tuple[str, str]]:
        """Return the lines that `mesaopt bench train` prints."""
        times, ratios = self.official, self.ratios
        spread = f"{min(times):.1f} to {max(times):.1f} in {len(times)} rounds of several steps"
        turns = f"{min(ratios):.2f} to {max(ratios):.2f}, in turns"
        return [
            ("the authors' code", f"{statistics.median(times):.1f} ms (median; {spread})"),
            ("our time over theirs", f"{statistics.median(ratios):.2f} (median; {turns})"),
        ]


def compare(
    config: RunConfig, code: OfficialCode, step: Callable[[], object], *, steps: int
) -> Comparison:
    """Time our step and theirs, several of each in turns.

    Raises:
        ConfigError: their code has no such model or task.
        RunError: their code does not run.
    """
    settings = check(config, code)
    with _official_steps(code, settings) as official:
        ours, theirs = [], []
        official(_WARM_UP)
        for _ in range(_ROUNDS):
            theirs.append(official(steps) * 1000)
            ours.append(_seconds(step, steps) * 1000)
    return Comparison(ours=ours, official=theirs)


def check(config: RunConfig, code: OfficialCode) -> dict[str, Any]:
    """Refuse what cannot be timed, before anything is; return the settings of their code.

    Raises:
        ConfigError: their code has no such model or task.
        RunError: there is no clone of their code, or no such interpreter.
    """
    if not files.exists(code.clone / "src" / "train.py"):
        raise RunError(f"official={str(code.clone)!r}: is no clone of the authors' code")
    if shutil.which(code.python) is None:
        raise RunError(f"python={str(code.python)!r}: No such file, or none that can be run")
    return settings_of(config)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of the authors' classes that make the same training.

    Raises:
        ConfigError: their code has no such model or task.
    """
    task, model, train = config.task, config.model, config.train
    if not isinstance(task, LinearSystemConfig) or not isinstance(model, ModelConfig):
        raise ConfigError(
            f"recipe={config.recipe!r}: must train a sequence model on a linear system"
        )
    # Their first block is another one where tokens are embedded, and alone has positions.
    embedded = model.embed_dim is not None
    first, rest = model.mixers[:embedded], model.mixers[embedded:]
    asked = (
        (task.transition, task.start, model.positions)
        + (model.unit_queries_keys, model.unit_queries_values, model.mlp_dim, model.forget_cap)
        + (set(first) <= _FIRST_MIXERS, set(rest) <= _MIXERS, len(set(rest)))
    )
    positions = "first_layer" if embedded else "none"
    if asked != ("orthogonal", "uniform", positions, "none", "none", None, None, True, True, 1):
        raise ConfigError(f"recipe={config.recipe!r}: the authors' code cannot train this model")
    width = model.embed_dim or model.token_dim
    return {
        "batch_size": train.batch_size,
        "initial_std": model.initial_std,
        "slots": 0 if embedded else width,
        "data": {
            "seq_len": task.length,
            "data_dim": task.dim,
            "obs_dim": task.dim,
            "range": task.start_range,
            "noise": task.noise_std,
            "noise_obs": 0,
            "data_clip": task.state_clip,
            "eye_obs": True,
        },
        "model": {
            "use_emb": embedded,
            "use_pe_kq": embedded,
            "hybrid_first_block": embedded,
            "hybrid_sm": first == ("softmax_attention",),
            "num_hybrid_heads": model.num_heads,
            "input_dim": model.token_dim,
            "pe_dim": width,
            "out_dim": model.output_dim if embedded else width,
            "data_dim": task.dim,
            "use_clip": model.activation_clip is not None,
            "clip": model.activation_clip or 1.0,
            "mask_inputs": task.token_slots[:2] == ("zero", "zero"),
            "use_mesa": rest[0] == "mesa",
            "linear": rest[0] == "linear_attention",
            "num_layers": len(rest),
            "num_heads": model.num_heads,
            "embed_dim": width,
            "key_size": model.head_dim,
            "seq_len": task.length,
        },
        "optimizer": {
            "grad_clip": train.gradient_clip,
            "peak_lr": train.learning_rate,
            "use_schedule": train.schedule == "warmup_cosine",
            "warmup_steps": train.warmup_steps,
            "max_iters": train.decay_steps,
            "end_value": train.final_learning_rate,
            "weight_decay": train.weight_decay,
        },
    }


@contextlib.contextmanager
def _official_steps(
    code: OfficialCode, settings: dict[str, Any]
) -> Iterator[Callable[[int], float]]:
    """Start their code; yield a function that makes a number of steps and returns the seconds of one."""
    command = [str(code.python), official_process.__file__, str(code.clone)]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=errors)
        except OSError as error:
            raise RunError(f"python={str(code.python)!r}: {error.strerror}") from error
        questions, answers = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)

        def ask(question: str) -> bytes:
            with contextlib.suppress(BrokenPipeError):  # its last words are read below
                questions.write(f"{question}\n".encode())
            if answer := answers.readline():
                return answer
            errors.seek(0)
            *_, reason = ["no message", *errors.read().splitlines()]
            raise RunError(f"official={str(code.clone)!r}: does not run: {reason}")

        with process:
            try:
                ask(json.dumps(settings))
                yield lambda count: float(ask(str(count))) / count
            finally:
                process.kill()


def _seconds(step: Callable[[], object], count: int) -> float:
    """Time one of several steps."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - started) / count
