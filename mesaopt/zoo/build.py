"""Add finished trainings to the zoo, for those who maintain it: `python -m mesaopt.zoo.build RUN ...`."""

import hashlib
import sys
from pathlib import Path
from typing import Any

from mesaopt import files, json_files, zoo
from mesaopt.analysis import Evaluation, in_context_loss, model_predictor
from mesaopt.errors import MesaoptError, RunError
from mesaopt.papers.uncovering2023.compression import EXTRACTED_AT, INTERPOLATED
from mesaopt.papers.uncovering2023.laboratory import COMPARED, SETTINGS
from mesaopt.papers.uncovering2023.published import LEARNING
from mesaopt.papers.uncovering2023.sensitivities import FOLLOWED, spread
from mesaopt.recipes import RECIPES
from mesaopt.tasks import make_task
from mesaopt.training import Run, RunFolder, load_run

CHECKPOINTED = {*COMPARED["core"], *INTERPOLATED, *FOLLOWED}
"""Recipes of whose training a figure reads checkpoints."""
_CHECKPOINT_BYTES = 3 * 2**20
"""Of one recipe, without the steps at which there are published numbers."""
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
    model = model_predictor(run.model, run.config.task.token_slots)
    evaluation = Evaluation(num_sequences=zoo.LOSS_SEQUENCES)
    loss = in_context_loss({"model": model}, make_task(run.config.task), evaluation)["model"]
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


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        try:
            print(add(files.as_path(argument)))
        except MesaoptError as error:
            sys.exit(str(error))
