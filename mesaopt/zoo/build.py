"""Add finished trainings to the zoo, for those who maintain it: `python -m mesaopt.zoo.build RUN ...`."""

import hashlib
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mesaopt import files, json_files, zoo
from mesaopt.analysis import Evaluation, in_context_loss
from mesaopt.errors import MesaoptError, RunError
from mesaopt.papers.uncovering2023.compression import EXTRACTED_AT, INTERPOLATED
from mesaopt.papers.uncovering2023.core_milestones import LSA_1, MESA
from mesaopt.papers.uncovering2023.published import LEARNING
from mesaopt.papers.uncovering2023.sensitivities import FOLLOWED, spread
from mesaopt.papers.uncovering2023.settings import SETTINGS
from mesaopt.recipes import RECIPES
from mesaopt.tasks import Text, make_task
from mesaopt.training import Run, RunFolder, load_run
from mesaopt.training.tensors import is_narrowed, narrowed, read_tensors

CHECKPOINTED = {LSA_1, MESA, *INTERPOLATED, *FOLLOWED}
"""Recipes whose training a figure follows from its beginning to its end."""
_CHECKPOINT_BYTES = 3 * 2**19
"""Of one recipe, rounded, without the steps at which there are published numbers."""
PUBLISHED = tuple(
    recipe.name
    for recipe in RECIPES.values()
    if recipe.source not in ("family", "language")
    and recipe.name not in ("tf-7-dim-40", "tf-7-dim-60")
)
"""Recipes of the two papers that belong into the zoo: those that a computer with two cores can train. Those
of byte models are `zoo.FAMILIES`."""
_SEQUENCES, _STRETCHES = 10_240, 512
"""Fresh test sequences behind the loss of a model, and stretches of text behind that of a byte model."""
_PAGE = """# Trained models

{count} trained models come with the package, {size:.1f} MB in all. Those of the papers were trained
as published: the steps, batches and schedule of their recipes, with seed 0, by `mesaopt train`.
[Byte models](#byte-models) follow recipes of our own. `mesaopt list zoo` lists all.

```python
import mesaopt

run = mesaopt.load("lsa-1")  # model, configuration, learning curve
print(run.metrics[-1]["test_loss"])
print(mesaopt.zoo.card("lsa-1"))  # how it was trained, and how good it is
```

- `zoo:lsa-1` names a model wherever a run folder is asked for: `mesaopt evaluate zoo:lsa-1`,
  `mesaopt diagnose zoo:lsa-1`.
- `mesaopt reproduce core --from-zoo --scale paper` measures and judges a study on these models
  without training any; `--from DIR` takes any other folder of run folders.
- `mesaopt.load("lsa-1", step=300)` gives an earlier checkpoint. Checkpoints are kept where a figure
  reads them. The weights of all but the last are rounded to half precision: this changes a mean loss by
  less than 0.03 %, and the loss at a position by about 0.5 % at most.
- Files are compared with their digests before they are used. A damaged one is an error that says
  how to restore it.

| model | steps | loss | published | checkpoints | kB |
|---|---|---|---|---|---|
{rows}

Losses are means over positions and {sequences:,} fresh test sequences, with their standard error
over sequences; most of a mean comes from the first positions, at which nothing can be learned yet.
Published losses are those of the authors' own networks on their own sequences. A difference of a
few standard errors is a difference of sequences.

## Not trained yet

These {num_waiting} recipes of the papers are not in the package. Each line trains one as published,
in hours:

```
{waiting}
```

## Byte models

[Language models](language.md) on bytes of Python's standard library: the model of MesaNet with each
mixer, all trained alike, with seed 0. The mixers are of four families, and the package has room for one
model of each. Weights are rounded to half precision; the losses are those of the rounded ones.

{byte_models}

Each line trains one that is not in the package, in a quarter of an hour or more:

```
{bytes_waiting}
```

## Adding a model

Who maintains the package adds a finished run with `python -m mesaopt.zoo.build
runs/<recipe>-seed0`, which also writes this page anew.
"""
_BYTE_MODELS = """| family | model | parameters | steps | loss | perplexity | bits a byte | kB |
|---|---|---|---|---|---|---|---|
{rows}

Losses are means over {stretches} stretches of {length} bytes, with their standard error over
stretches. The stretches are of files that were held out of the training, from the standard library of
the Python that `mesaopt.zoo.card` names; another Python has other files. A model goes on with a text:

```
mesaopt generate zoo:{name} --prompt "def "
```"""
_COPIED = ("config.json", "meta.json", "metrics.jsonl", "DONE")


def add(path: Path, folder: Path) -> Path:
    """Add a finished run that was trained as its recipe says, or put it in the place of an earlier one.

    Args:
        path: of its run folder, which stays as it is.
        folder: of the zoo.

    Returns:
        The new run folder.

    Raises:
        RunError: the run has not ended, was not trained as its recipe says, or on the text of another
            Python; or its recipe does not belong into the zoo.
    """
    source = RunFolder(path)
    if not source.is_done:
        raise RunError(f"{path}: has not ended; `mesaopt train --resume` goes on with it")
    run = load_run(path, device="cpu")
    recipe = run.config.recipe
    if recipe not in (*PUBLISHED, *zoo.FAMILIES):
        raise RunError(f"{path}: recipe={recipe!r}: must be one of PUBLISHED or of zoo.FAMILIES")
    if run.config != RECIPES[recipe].config:
        raise RunError(f"{path}: must be trained as the recipe {recipe!r} says, with seed 0")
    if recipe in zoo.FAMILIES:
        _require_same_python(path)
    target = folder / recipe
    copy = target.with_name(files.TEMPORARY + recipe)
    files.remove(copy)
    steps = kept_steps(run, source.steps)
    for name in _COPIED:
        files.write(copy / name, files.read_bytes(path / name))
    for step in steps:
        name = Path("checkpoints", f"step_{step:06d}", "model.safetensors")
        narrow = recipe in zoo.FAMILIES or step != steps[-1]
        files.write(copy / name, _weights(path / name, narrow=narrow))
    files.remove(target)
    files.move(copy, target)
    _list(folder, recipe, _facts(run, steps, target))
    return target


def _weights(path: Path, *, narrow: bool) -> bytes:
    """Read a file of weights; all but the last of the papers' are rounded, so that all have room."""
    tensors, facts = read_tensors(path)
    whole = not narrow or is_narrowed(facts)
    return files.read_bytes(path) if whole else narrowed(tensors, facts)


def _require_same_python(path: Path) -> None:
    """Refuse to measure a byte model on another standard library than that of its training."""
    there = json_files.read(path / "meta.json", {"python": str})["python"]
    here = platform.python_version()
    if here != there:
        wanted = f"must be added with Python {there}, not {here}"
        raise RunError(f"{path}: was trained on the standard library of its Python: {wanted}")


def kept_steps(run: Run, steps: list[int]) -> list[int]:
    """Choose the checkpoints that figures read.

    These are the last, those with published losses, and some of a training that a figure follows.
    """
    recipe, end = run.config.recipe, steps[-1]
    wanted = {end, *LEARNING.get(recipe, {})}
    if recipe in CHECKPOINTED:
        size = sum(x.numel() * x.element_size() for x in run.model.state_dict().values()) // 2
        most = SETTINGS["paper"].sensitivity_checkpoints
        wanted |= {*spread(steps, max(3, min(most, _CHECKPOINT_BYTES // size)))}
        wanted.add(round(EXTRACTED_AT.get(recipe, 1.0) * end))
    return sorted(wanted & {*steps})


def _facts(run: Run, steps: list[int], target: Path) -> dict[str, Any]:
    """Measure the loss and compute the digests."""
    task = make_task(run.config.task)
    is_text = isinstance(task, Text)
    evaluation = Evaluation(num_sequences=_STRETCHES if is_text else _SEQUENCES)
    loss = in_context_loss(run, task, evaluation)
    copied = sorted(path for path in target.rglob("*") if path.is_file())
    digests = {
        path.relative_to(target).as_posix(): hashlib.sha256(files.read_bytes(path)).hexdigest()
        for path in copied
    }
    return {
        "steps": steps,
        "loss": loss.mean,
        "loss_error": loss.mean_error,
        "sequences": len(loss.losses),
        "checksum": task.corpus.checksum if is_text else "",
        "files": digests,
    }


def _list(folder: Path, recipe: str, facts: dict[str, Any]) -> None:
    path = folder / zoo.INDEX
    index = json_files.read(path, {}) if files.exists(path) else {}
    index[recipe] = facts
    json_files.write(path, {name: index[name] for name in RECIPES if name in index})


def page() -> str:
    """Describe the zoo in Markdown: `docs/zoo.md`, which is written anew whenever a model is added."""
    entries = [zoo.get(name) for name in zoo.names()]
    waiting = [name for name in PUBLISHED if name not in zoo.names()]
    return _PAGE.format(
        rows=_table([f"`{e.recipe}`", *e.describe().values()] for e in entries if e.family is None),
        count=len(entries),
        size=sum(entry.num_bytes for entry in entries) / 1e6,
        sequences=_SEQUENCES,
        waiting="\n".join(f"mesaopt train {name}" for name in waiting),
        num_waiting=len(waiting),
        byte_models=_byte_models([entry for entry in entries if entry.family is not None]),
        bytes_waiting="\n".join(_byte_commands({entry.family for entry in entries})),
    )


def _byte_models(entries: list[zoo.Entry]) -> str:
    """Describe the byte models that there are."""
    if not entries:
        return "None is in the package yet."
    name = entries[0].recipe
    return _BYTE_MODELS.format(
        rows=_table(_byte_row(entry) for entry in entries),
        stretches=_STRETCHES,
        length=RECIPES[name].config.task.length,
        name=name,
    )


def _byte_row(entry: zoo.Entry) -> list[str]:
    """Describe a byte model in the columns of its table."""
    facts, model = entry.describe(), zoo.load(entry.recipe).model
    size = sum(weight.numel() for weight in model.parameters())
    start = [str(entry.family), f"`{entry.recipe}`", f"{size:,}", facts["steps"], facts["loss"]]
    return [*start, *entry.describe_text().values(), facts["kB"]]


def _byte_commands(there: set[str | None]) -> Iterator[str]:
    """Give the commands that train other byte models; of some families there are models already."""
    for name, family in zoo.FAMILIES.items():
        if name not in zoo.names():
            yield f"mesaopt train {name:<15}  # {family}{'' if family in there else ': none yet'}"


def _table(rows: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(arguments: Sequence[str]) -> None:
    """Add runs, and write `docs/zoo.md` of the clone anew."""
    parser = ArgumentParser(prog="python -m mesaopt.zoo.build", description=main.__doc__)
    parser.add_argument("run", nargs="*", type=files.as_path, help="folder of a run that has ended")
    for run in parser.parse_args(arguments).run:
        print(add(run, zoo.FOLDER))
    zoo.forget()
    files.write(zoo.FOLDER.parents[2] / "docs" / "zoo.md", page())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MesaoptError as error:
        sys.exit(str(error))
