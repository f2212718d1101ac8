"""Trained models that come with the package: run folders of the recipes.

Models of the papers were trained as published, byte models as their recipe says. Every model is a
run folder like any other, with its configuration, its learning curve and its weights. Of the checkpoints
only those are kept that a figure reads, all but the last rounded to half precision, and none holds the
state of the optimiser. `zoo:tf-7` names the model of the recipe `tf-7` wherever a run folder is asked for.
"""

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mesaopt
from mesaopt import files, json_files
from mesaopt.display import Row, Shown, with_error
from mesaopt.errors import ConfigError, RunError, suggest
from mesaopt.papers.uncovering2023.published import CURVES
from mesaopt.recipes import RECIPES

if TYPE_CHECKING:  # torch is loaded with the first model
    from mesaopt.analysis import Estimate
    from mesaopt.training import Run

__all__ = [
    "FAMILIES",
    "Entry",
    "card",
    "folder",
    "forget",
    "get",
    "load",
    "locate",
    "names",
    "title",
]

PREFIX = "zoo:"
"""In front of a name where a run folder can be given too."""
FOLDER = Path(__file__).parent / "runs"
"""The run folders, by recipe, and the list of them."""
INDEX = "index.json"
"""The list: the steps and the loss of each model, and the digests of its files."""

FAMILIES: dict[str, str] = {
    "lm-softmax": "softmax",
    "lm-linear": "linear",
    "lm-gated-linear": "linear",
    "lm-delta": "delta",
    "lm-gated-delta": "delta",
    "lm-longhorn": "delta",
    "lm-mesa": "mesa",
    "lm-mesanet": "mesa",
}
"""Recipes of byte models, and the family of their mixer: there is room for one model of each family."""
DEVIATIONS: dict[str, str] = {
    "hybrid-mesa-nonlinear": "queries and keys have length 1; in the published network, queries and "
    "values have, since the authors' code swaps the names of keys and values in the mesa layer",
    "tf-12": "no code of this training was published; steps, batches and schedule are those of tf-7",
    "lsa-1": "the published mean loss is that of the training of Fig. 4A, to which this recipe belongs",
    "full-mesa": "two mesa layers, as the text says; the published network, in which the first layer is "
    "linear self-attention, is full-mesa-published",
}
"""Known differences from the published training, besides the random numbers."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Entry(Shown):
    """One model of the zoo.

    Example:
        >>> entry = get("lsa-1")
        >>> entry.recipe, entry.steps[-1], entry.loss.value < 0.91
        ('lsa-1', 3500, True)
    """

    recipe: str
    """Its recipe, and its name."""
    steps: tuple[int, ...]
    """Steps of its checkpoints, ascending; the last is the end of training."""
    loss_value: float
    """Mean loss on fresh test sequences, in :attr:`unit`."""
    loss_error: float
    """Its standard error."""
    num_sequences: int
    """Test sequences behind the loss."""
    checksum: str
    """Of the text that the loss is of, as in :class:`mesaopt.config.TextConfig`; empty: it is no text."""
    digests: dict[str, str]
    """SHA-256 of every file of the run folder, by path in it."""

    @property
    def loss(self) -> "Estimate":
        """Mean loss on fresh test sequences, in :attr:`unit`, with its standard error."""
        from mesaopt.analysis import Estimate

        return Estimate(self.loss_value, self.loss_error)

    @property
    def family(self) -> str | None:
        """Family of the mixer of a byte model; None for the models of the papers."""
        return FAMILIES.get(self.recipe)

    @property
    def unit(self) -> str:
        """Unit of the loss: "nats a byte" of byte models, empty for squared errors."""
        return "" if self.family is None else "nats a byte"

    def describe_text(self) -> dict[str, str]:
        """Return the loss of a byte model in the two other usual ways.

        Returns:
            Perplexity and bits a byte, each with its standard error.
        """
        from mesaopt.analysis import Estimate

        perplexity = math.exp(self.loss_value)
        scores = {
            "perplexity": Estimate(perplexity, perplexity * self.loss_error),
            "bits a byte": self.loss / math.log(2),
        }
        return {name: str(score) for name, score in scores.items()}

    @property
    def path(self) -> Path:
        """The run folder."""
        return FOLDER / self.recipe

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum((self.path / name).stat().st_size for name in self.digests)

    def describe(self) -> dict[str, str]:
        """Return what a table says about the model.

        Returns:
            Words by the names of columns.
        """
        published = self.published_loss
        return {
            "steps": f"{self.steps[-1]:,}",
            "loss": f"{self.loss_value:.4f} ± {self.loss_error:.4f} {self.unit}".rstrip(),
            "published": "" if published is None else f"{published:.4f}",
            "checkpoints": str(len(self.steps)),
            "kB": f"{self.num_bytes / 1000:,.0f}",
        }

    def _headline(self) -> str:
        loss = f"{with_error(self.loss_value, self.loss_error)} {self.unit}".rstrip()
        published = self.published_loss
        theirs = "" if published is None else f" (published {published:.4g})"
        return f"{self.recipe}: loss {loss}{theirs} after {self.steps[-1]:,} steps"

    def _rows(self) -> list[Row]:
        return [
            {
                "recipe": self.recipe,
                "steps": self.steps[-1],
                "loss": self.loss_value,
                "loss_error": self.loss_error,
                "unit": self.unit,
                "sequences": self.num_sequences,
                "published_loss": self.published_loss,
                "checkpoints": len(self.steps),
                "bytes": self.num_bytes,
            }
        ]

    def _table(self) -> list[Row]:
        return [self.describe()]

    @property
    def published_loss(self) -> float | None:
        """Mean loss of the authors' own network; None where they give none."""
        means = [curves[self.recipe].mean for curves in CURVES.values() if self.recipe in curves]
        return means[0] if means else None

    def verify(self) -> None:
        """Compare all files with their digests; a newer file in the place of an old one is damage, too.

        Raises:
            RunError: a file is missing or damaged.
        """
        for name, digest in self.digests.items():
            path = self.path / name
            if hashlib.sha256(files.read_bytes(path)).hexdigest() != digest:
                raise RunError(
                    f"{path}: is damaged; in a clone, `git checkout -- {path}` restores it, elsewhere "
                    "`pip install --force-reinstall --no-deps mesaopt`"
                )


def names() -> list[str]:
    """Return the names of the models, in the order of the recipes.

    Returns:
        Names of recipes.

    Example:
        >>> "lsa-1" in names()
        True
    """
    return [name for name in RECIPES if name in _index()]


def get(name: str) -> Entry:
    """Look a model up.

    Args:
        name: of its recipe, with or without "zoo:" in front.

    Returns:
        What is known of it.

    Raises:
        ConfigError: there is no such model.
        RunError: the list of models is damaged.

    Example:
        >>> get("zoo:lsa1")
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: name='lsa1': did you mean 'lsa-1'?
    """
    name = name.removeprefix(PREFIX)
    if name not in _index():
        if name in RECIPES:
            raise ConfigError(
                f"name={name!r}: is not trained yet; `mesaopt train {name}` does it. There are: "
                + ", ".join(names())
            )
        raise ConfigError(f"name={name!r}: {suggest(name, names())}")
    facts = _index()[name]
    return Entry(
        recipe=name,
        steps=tuple(facts["steps"]),
        loss_value=facts["loss"],
        loss_error=facts["loss_error"],
        num_sequences=facts["sequences"],
        checksum=facts["checksum"],
        digests=facts["files"],
    )


def load(name: str, *, step: int | None = None, device: str = "cpu") -> "Run":
    """Load a trained model of the zoo, with its configuration and learning curve.

    Args:
        name: of its recipe, such as "tf-7".
        step: of the weights, one of :attr:`Entry.steps`; the last if not given. Those of earlier steps
            are rounded to half precision.
        device: "auto", "cpu", "cuda" or "cuda:<number>".

    Returns:
        The run, as :func:`mesaopt.training.load_run` returns it. Its model can be trained on.

    Raises:
        ConfigError: there is no such model.
        RunError: a file is damaged, or there is no such checkpoint or device.

    Example:
        >>> run = load("lsa-1")
        >>> run.config.recipe, run.metrics[-1]["step"]
        ('lsa-1', 3500)
    """
    from mesaopt.training import load_run

    entry = get(name)
    entry.verify()
    return load_run(entry.path, step=step, device=device)


def folder() -> Path:
    """Return the folder of all run folders, after comparing every file with its digest.

    Returns:
        Its path.

    Raises:
        RunError: a file is missing or damaged.

    Example:
        >>> (folder() / "lsa-1").exists()
        True
    """
    for name in names():
        get(name).verify()
    return FOLDER


def title() -> str:
    """Return what a report calls the zoo.

    Returns:
        A name with the version of the package.

    Example:
        >>> title().startswith("the zoo of mesaopt ")
        True
    """
    return f"the zoo of mesaopt {mesaopt.__version__}"


def locate(run: str | Path) -> Path:
    """Return the run folder that a user means: a path, or the name of a model of the zoo.

    Args:
        run: path of a run folder, or "zoo:" and a name.

    Returns:
        The path of the run folder; files of the zoo are compared with their digests.

    Raises:
        ConfigError: there is no such model in the zoo.
        RunError: a file of it is damaged.

    Example:
        >>> locate("runs/mine"), locate("zoo:lsa-1").name
        (PosixPath('runs/mine'), 'lsa-1')
    """
    if not str(run).startswith(PREFIX):
        return files.as_path(run)
    entry = get(str(run))
    entry.verify()
    return entry.path


def card(name: str) -> str:
    """Describe a model in Markdown: what it is, how it was trained, how good it is.

    Args:
        name: of its recipe.

    Returns:
        The model card.

    Raises:
        ConfigError: there is no such model.

    Example:
        >>> print(card("lsa-1").splitlines()[0])
        # lsa-1
    """
    entry = get(name)
    recipe, meta = RECIPES[entry.recipe], json_files.read(entry.path / "meta.json")
    done = json_files.read(entry.path / "DONE", {"steps": int, "seconds": float})
    config, versions = recipe.config, meta["packages"]
    if entry.family is None:
        sequences, trained, more = recipe.task, "as published", _paper_rows(entry)
    else:
        sequences, trained = f"stretches of {config.task.length} bytes", "as its recipe says"
        more = _text_rows(entry, meta["python"])
    rows = {
        "recipe": f"`{entry.recipe}`, seed {config.seed}",
        "task": f"`{config.task.kind}`, {sequences}",
        "training": f"{done['steps']:,} steps of {config.train.batch_size:,} sequences, {trained}",
        "checkpoints": ", ".join(f"{step:,}" for step in entry.steps)
        + ("; all but the last in half precision" if len(entry.steps) > 1 else ""),
        "loss": f"{entry.describe()['loss']} ({entry.num_sequences:,} fresh test sequences)",
        **more,
        "commit": f"`{meta['git']}`",
        "software": f"torch {versions['torch']}, Python {meta['python']}",
        "machine": f"{meta['processor']}, {meta['cores']} cores",
        "time": f"{done['seconds'] / 60:.0f} min, at low priority next to other programs",
    }
    lines = [f"# {entry.recipe}", "", f"{recipe.summary[0].upper()}{recipe.summary[1:]}.", ""]
    lines += ["| | |", "|---|---|", *(f"| {title} | {text} |" for title, text in rows.items())]
    return "\n".join(lines) + "\n"


def _paper_rows(entry: Entry) -> dict[str, str]:
    """Compare a model with that of the paper."""
    published = entry.published_loss
    return {
        "published loss": "none" if published is None else f"{published:g}",
        "known deviations": DEVIATIONS.get(entry.recipe, "none but the random numbers"),
    }


def _text_rows(entry: Entry, python: str) -> dict[str, str]:
    """Say how well a byte model predicts, and which text."""
    return entry.describe_text() | {
        "text": f"the standard library of Python {python} (checksum `{entry.checksum}`); the loss is of "
        "files of it that were held out, and another Python has other files"
    }


def forget() -> None:
    """Read the list of models again when it is needed, after one was added.

    Example:
        >>> forget()
    """
    _index.cache_clear()


@functools.cache
def _index() -> dict[str, dict[str, Any]]:
    """Read the list of models."""
    loss = {"loss": float, "loss_error": float, "sequences": int, "checksum": str}
    return json_files.read(FOLDER / INDEX, {str: {"steps": [int], **loss, "files": {str: str}}})
