"""Importing: a clone of the authors' repository in, run folders out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mesaopt import files, json_files
from mesaopt.config import RunConfig
from mesaopt.errors import RunError
from mesaopt.progress import AnyProgress, reporting
from mesaopt.released.networks import COMMIT, FOLDER, RELEASED, REPOSITORY, Network, config_of
from mesaopt.released.reading import read_arrays
from mesaopt.released.weights import weights_of
from mesaopt.training import Checkpoint, RunFolder, Trainer
from mesaopt.training.loop import metrics_line
from mesaopt.training.trainer import TEST_SEED

ORIGIN = "the authors' release"


@dataclass(frozen=True)
class Imported:
    """A released network in a run folder."""

    network: Network
    """Where it came from."""
    path: Path
    """The run folder."""
    steps: int
    """Training steps."""
    test_loss: float
    """Mean loss of the test sequences, measured here."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values.

        Returns:
            run, file, steps, test_loss, and stored_loss, which is None where the authors stored none.
        """
        return {
            "run": str(self.path),
            "file": self.network.file,
            "steps": self.steps,
            "test_loss": self.test_loss,
            "stored_loss": self.network.stored,
        }

    def describe(self) -> dict[str, str]:
        """Return the row of a table.

        Returns:
            Words by the names of columns.
        """
        stored = self.network.stored
        return {
            "run": self.network.run,
            "steps": f"{self.steps:,}",
            "test loss here": f"{self.test_loss:.4g}",
            "stored by the authors": "none" if stored is None else f"{stored:.4g}",
        }


@dataclass(frozen=True)
class _Source:
    """A released network, read and arranged."""

    network: Network
    config: RunConfig
    weights: dict[str, Tensor]
    sha256: str


def import_released(
    clone: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: AnyProgress = True,
) -> list[Imported]:
    """Turn the weights that the authors released into run folders.

    All files are read and checked before anything is written, and each run folder appears whole. The step 0
    of such a run is not known: its metrics have the line of the last step alone, with the loss measured
    here on the sequences that every run is tested on.

    Args:
        clone: working tree of the authors' repository at its first commit.
        out: folder of the run folders.
        overwrite: replace run folders that an earlier import wrote.
        progress: a bar, or a function to be called before each run is scored and written, with its name as
            the stage.

    Returns:
        The runs, in the order of `RELEASED`.

    Raises:
        RunError: a file is missing, damaged or holds something else than arrays, a run folder exists
            already, or the disk is full.

    Example:
        >>> import_released("no/such/clone", "released")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: clone='no/such/clone': there is no such folder
    """
    clone, out = files.as_path(clone), files.as_path(out)
    _require_files(clone)
    _require_free([out / network.run for network in RELEASED], overwrite=overwrite)
    sources = [_read(network, clone) for network in RELEASED]
    imported = []
    with reporting(progress, "importing") as report:
        for done, source in enumerate(sources):
            report(done, len(sources), stage=source.network.run)
            loss = _test_loss(source)
            path = _write(source, out, loss)
            imported.append(Imported(source.network, path, source.config.train.steps, loss))
    return imported


def _require_files(clone: Path) -> None:
    """Say which files a clone lacks, and how to get them."""
    if not files.is_folder(clone):
        raise RunError(f"clone={str(clone)!r}: there is no such folder")
    wanted = list(dict.fromkeys(network.file for network in RELEASED))
    missing = [file for file in wanted if not files.exists(clone / FOLDER / file)]
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        what = f"{len(missing)} of {len(wanted)} files in {FOLDER} are missing ({names})"
        how = f"git -C {clone} checkout {COMMIT}"
        raise RunError(f"clone={str(clone)!r}: {what}; they are in the first commit: {how}")


def _require_free(paths: list[Path], *, overwrite: bool) -> None:
    """Refuse to write over run folders, unless asked, and over anything else in any case."""
    for path in paths:
        if not files.exists(path) or (files.is_folder(path) and not files.names(path)):
            files.require_writable(path)
        elif not overwrite:
            raise RunError(f"out={str(path)!r}: exists already; --overwrite replaces imported runs")
        elif not RunFolder(path).is_imported:
            raise RunError(f"out={str(path)!r}: holds something else than an imported run")


def _read(network: Network, clone: Path) -> _Source:
    path = clone / FOLDER / network.file
    config = config_of(network)
    weights = weights_of(network, config.sequence_model, read_arrays(path), path)
    return _Source(network, config, weights, hashlib.sha256(files.read_bytes(path)).hexdigest())


def _test_loss(source: _Source) -> float:
    with Trainer.open(source.config, torch.device("cpu")) as trainer:
        trainer.model.load_state_dict(source.weights)
        return trainer.test_loss()


def _write(source: _Source, out: Path, loss: float) -> Path:
    """Write a run folder under a temporary name, then rename it."""
    path, steps = out / source.network.run, source.config.train.steps
    temporary = path.with_name(files.TEMPORARY + path.name)
    files.remove(temporary)
    folder = RunFolder.open(temporary, source.config, resume=False)
    json_files.write(folder.path / "meta.json", folder.meta | {"imported": _origin(source)})
    folder.log(metrics_line(source.config, steps, None, loss))
    folder.save(Checkpoint(steps, 0.0, source.weights, {}), resumable=False)
    folder.finish(steps, 0.0)
    files.remove(path)
    files.move(temporary, path)
    return path


def _origin(source: _Source) -> dict[str, Any]:
    return {
        "from": ORIGIN,
        "repository": REPOSITORY,
        "commit": COMMIT,
        "file": f"{FOLDER}/{source.network.file}",
        "keys": source.network.keys,
        "sha256": source.sha256,
        "seed": source.network.seed,
        "steps": source.config.train.steps,
        "test_seed": TEST_SEED,
    }
