"""Add finished trainings to the zoo, for those who maintain it: `python -m mesaopt.zoo.build RUN ...`."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesaopt import files, json_files, zoo
from mesaopt.analysis import Evaluation, in_context_loss
from mesaopt.errors import MesaoptError, RunError
from mesaopt.papers.uncovering2023.compression import EXTRACTED_AT, INTERPOLATED
from mesaopt.papers.uncovering2023.laboratory import COMPARED
from mesaopt.papers.uncovering2023.published import LEARNING
from mesaopt.papers.uncovering2023.sensitivities import FOLLOWED, spread
from mesaopt.papers.uncovering2023.settings import SETTINGS
from mesaopt.recipes import RECIPES
from mesaopt.training import Run, RunFolder, load_run

CHECKPOINTED = {*COMPARED["core"], *INTERPOLATED, *FOLLOWED}
"""Recipes of whose training a figure reads checkpoints."""
_CHECKPOINT_BYTES = 3 * 2**20
"""Of one recipe, without the steps at which there are published numbers."""
PUBLISHED = tuple(
    recipe.name
    for recipe in RECIPES.values()
    if recipe.source not in ("family", "language")
    and recipe.name not in ("tf-7-dim-40", "tf-7-dim-60")
)
"""Recipes that belong into the zoo: those of the two papers that a computer with two cores can train."""
_PAGE = """# Trained models

{count} trained models come with the package, {size:.1f} MB in all. Each was trained as published:
the steps, batches and schedule of its recipe, with seed 0, by `mesaopt train`. `mesaopt list zoo`
prints this table.

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
  reads them.
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

These {num_waiting} recipes are not in the package. Each line trains one as published, in hours:

```
{waiting}
```

Who maintains the package adds a finished run with `python -m mesaopt.zoo.build
runs/<recipe>-seed0`, which also writes this page anew.
"""
_COPIED = ("config.json", "meta.json", "metrics.jsonl", "DONE")


def add(path: Path, folder: Path = zoo.FOLDER) -> Path:
    """Add a finished run that was trained as published, or put it in the place of an earlier one.

    Args:
        path: of its run folder, which stays as it is.
        folder: of the zoo.

    Returns:
        The new run folder.

    Raises:
        RunError: the run has not ended, or was not trained as its recipe says.
    """
    source = RunFolder(path)
    if not source.is_done:
        raise RunError(f"{path}: has not ended; `mesaopt train --resume` goes on with it")
    run = load_run(path, device="cpu")
    recipe = run.config.recipe
    if recipe not in RECIPES or run.config != RECIPES[recipe].config:
        raise RunError(f"{path}: must be trained as the recipe {recipe!r} says, with seed 0")
    target = folder / recipe
    copy = target.with_name(files.TEMPORARY + recipe)
    files.remove(copy)
    steps = kept_steps(run, source.steps)
    for name in _COPIED:
        files.write(copy / name, files.read_bytes(path / name))
    for step in steps:
        name = Path("checkpoints", f"step_{step:06d}", "model.safetensors")
        files.write(copy / name, files.read_bytes(path / name))
    files.remove(target)
    files.move(copy, target)
    _list(folder, recipe, _facts(run, steps, target))
    return target


def kept_steps(run: Run, steps: list[int]) -> list[int]:
    """Choose the checkpoints that figures read: some where they follow a training, or else the last."""
    recipe, end = run.config.recipe, steps[-1]
    if recipe not in CHECKPOINTED:
        return [end]
    size = sum(x.numel() * x.element_size() for x in run.model.state_dict().values())
    most = SETTINGS["paper"].sensitivity_checkpoints
    wanted = {*spread(steps, max(3, min(most, _CHECKPOINT_BYTES // size)))}
    wanted |= {round(EXTRACTED_AT.get(recipe, 1.0) * end), *LEARNING.get(recipe, {})}
    return sorted(wanted & {*steps})


def _facts(run: Run, steps: list[int], target: Path) -> dict[str, Any]:
    """Measure the loss and compute the digests."""
    evaluation = Evaluation(num_sequences=zoo.LOSS_SEQUENCES)
    loss = in_context_loss(run, evaluation=evaluation)
    copied = sorted(path for path in target.rglob("*") if path.is_file())
    digests = {
        path.relative_to(target).as_posix(): hashlib.sha256(files.read_bytes(path)).hexdigest()
        for path in copied
    }
    return {"steps": steps, "loss": loss.mean, "loss_error": loss.mean_error, "files": digests}


def _list(folder: Path, recipe: str, facts: dict[str, Any]) -> None:
    path = folder / zoo.INDEX
    index = json_files.read(path, {}) if files.exists(path) else {}
    index[recipe] = facts
    json_files.write(path, {name: index[name] for name in RECIPES if name in index})


def page() -> str:
    """Describe the zoo in Markdown: `docs/zoo.md`, which is written anew whenever a model is added."""
    entries = [zoo.get(name) for name in zoo.names()]
    rows = [[f"`{entry.recipe}`", *entry.describe().values()] for entry in entries]
    size = sum(entry.num_bytes for entry in entries) / 1e6
    waiting = [name for name in PUBLISHED if name not in zoo.names()]
    return _PAGE.format(
        rows="\n".join("| " + " | ".join(row) + " |" for row in rows),
        count=len(entries),
        size=size,
        sequences=zoo.LOSS_SEQUENCES,
        waiting="\n".join(f"mesaopt train {name}" for name in waiting),
        num_waiting=len(waiting),
    )


def main(arguments: Sequence[str]) -> None:
    """Add runs, and write `docs/zoo.md` of the clone anew."""
    for argument in arguments:
        print(add(files.as_path(argument)))
    zoo.forget()
    files.write(zoo.FOLDER.parents[2] / "docs" / "zoo.md", page())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MesaoptError as error:
        sys.exit(str(error))
