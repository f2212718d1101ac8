"""Trained models that come with the package: run folders of the recipes, trained as published.

Every model is a run folder like any other, with its configuration, its learning curve and its weights. Of
the checkpoints only those are kept that a figure reads, and none holds the state of the optimiser.
`zoo:tf-7` names the model of the recipe `tf-7` wherever a run folder is asked for.
"""

import functools
import hashlib
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

__all__ = ["Entry", "card", "folder", "forget", "get", "load", "locate", "names", "title"]

PREFIX = "zoo:"
"""In front of a name where a run folder can be given too."""
FOLDER = Path(__file__).parent / "runs"
"""The run folders, by recipe, and the list of them."""
INDEX = "index.json"
"""The list: the steps and the loss of each model, and the digests of its files."""
LOSS_SEQUENCES = 10_240
"""Fresh test sequences behind the loss of a model."""

DEVIATIONS: dict[str, str] = {
    "hybrid-mesa-nonlinear": "queries and keys have length 1; in the published network, queries and "
    "values have, since the authors' code swaps the names of keys and values in the mesa layer",
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
    """Mean loss on 10,240 fresh test sequences."""
    loss_error: float
    """Its standard error."""
    digests: dict[str, str]
    """SHA-256 of every file of the run folder, by path in it."""

    @property
    def loss(self) -> "Estimate":
        """Mean loss on 10,240 fresh test sequences, with its standard error."""
        from mesaopt.analysis import Estimate

        return Estimate(self.loss_value, self.loss_error)

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
            "loss": f"{self.loss_value:.4f} ± {self.loss_error:.4f}",
            "published": "" if published is None else f"{published:.4f}",
            "checkpoints": str(len(self.steps)),
            "kB": f"{self.num_bytes / 1000:,.0f}",
        }

    def _headline(self) -> str:
        loss = with_error(self.loss_value, self.loss_error)
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
        digests=facts["files"],
    )


def load(name: str, *, step: int | None = None, device: str = "cpu") -> "Run":
    """Load a trained model of the zoo, with its configuration and learning curve.

    Args:
        name: of its recipe, such as "tf-7".
        step: of the weights, one of :attr:`Entry.steps`; the last if not given.
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
    config, published = recipe.config, entry.published_loss
    versions = meta["packages"]
    rows = {
        "recipe": f"`{entry.recipe}`, seed {config.seed}",
        "task": f"`{config.task.kind}`, {recipe.task}",
        "training": f"{done['steps']:,} steps of {config.train.batch_size:,} sequences, as published",
        "checkpoints": ", ".join(f"{step:,}" for step in entry.steps),
        "loss": f"{entry.loss.value:.4f} ± {entry.loss.error:.4f} "
        f"({LOSS_SEQUENCES:,} fresh test sequences)",
        "published loss": "none" if published is None else f"{published:g}",
        "known deviations": DEVIATIONS.get(entry.recipe, "none but the random numbers"),
        "commit": f"`{meta['git']}`",
        "software": f"torch {versions['torch']}, Python {meta['python']}",
        "machine": f"{meta['processor']}, {meta['cores']} cores",
        "time": f"{done['seconds'] / 60:.0f} min, at low priority next to other programs",
    }
    lines = [f"# {entry.recipe}", "", f"{recipe.summary[0].upper()}{recipe.summary[1:]}.", ""]
    lines += ["| | |", "|---|---|", *(f"| {title} | {text} |" for title, text in rows.items())]
    return "\n".join(lines) + "\n"


def forget() -> None:
    """Read the list of models again when it is needed, after one was added.

    Example:
        >>> forget()
    """
    _index.cache_clear()


@functools.cache
def _index() -> dict[str, dict[str, Any]]:
    """Read the list of models."""
    facts = {"steps": [int], "loss": float, "loss_error": float, "files": {str: str}}
    return json_files.read(FOLDER / INDEX, {str: facts})
