"""A sweep: a folder of run folders that an engine trains, several at once."""

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mesaopt import files, json_files
from mesaopt.config import RunConfig, differences, from_dict, to_dict
from mesaopt.errors import RESUME, ConfigError, RunError
from mesaopt.progress import AnyProgress, Report, reporting
from mesaopt.sweeps.engine import Engine, make_engine
from mesaopt.sweeps.points import Sweep, names_of, points_of
from mesaopt.training import RunFolder
from mesaopt.training.loop import as_config

FILE = "sweep.json"
"""The points of the sweep, written once; locked while an engine works."""
_LOGS, _PROBLEMS = "jobs", "problems.json"
_LOOK_EVERY_SECONDS = 2.0


def sweep(
    configs: Sequence[RunConfig | str],
    out: str | Path,
    *,
    engine: str | Engine = "local",
    resume: bool = False,
    device: str = "auto",
    progress: AnyProgress = True,
) -> Sweep:
    """Train many runs, several at once, each in a run folder of its own.

    A point that fails does not stop the others. After Ctrl-C, a kill or a lost machine, `resume=True` goes
    on from the newest checkpoint of each point, with any engine, on any machine that sees the folder.

    Args:
        configs: what to train, or names of recipes, all different, such as a list that
            :func:`mesaopt.sweeps.grid` makes. No tasks or models of your own: a job has the folder alone,
            which holds no code.
        out: folder of the sweep, new or empty unless resumed.
        engine: "local" (processes on this machine), "ray", "slurm", or an engine such as
            :class:`mesaopt.sweeps.Local` with options of its own.
        resume: go on with the sweep in `out` if there is one, of the same points.
        device: "auto", "cpu", "cuda" or "cuda:<number>"; with Ray "auto" is the CPU, without numbers.
        progress: a bar, nothing, or a function that is called every two seconds with the finished steps of
            all points.

    Returns:
        The points with their metrics.

    Raises:
        ConfigError: a configuration, the engine or the device is wrong.
        MissingPackageError: the package of the engine is not installed.
        RunError: the folder holds something else or another process works in it, there is no such device
            here, or the engine cannot be reached.

    Example:
        >>> import tempfile
        >>> from mesaopt.sweeps import Local, grid
        >>> short = {"train.steps": [2], "train.batch_size": [4], "train.evaluation_sequences": [4]}
        >>> configs = grid("lsa-1", short | {"train.learning_rate": [1e-4, 3e-4]})
        >>> result = sweep(configs, tempfile.mkdtemp(), engine=Local(processes=1), device="cpu")
        >>> [point.state for point in result.points]
        ['done', 'done']
    """
    planned, chosen = plan_sweep(configs, out), make_engine(engine)
    out, points = planned.path, planned.points
    runs = {point.path: point.config for point in points}
    _require_same(out, list(runs.values()), resume=resume)
    RunFolder.check_all(list(runs), list(runs.values()), resume=True)
    if not all(RunFolder(path).is_done for path in runs):
        chosen.check(device)
    if not files.exists(out / FILE):
        named = [{"name": one.path.name, "config": to_dict(one.config)} for one in points]
        json_files.write(out / FILE, {"points": named})
    with files.only_one_process(out / FILE):
        train_all(chosen, runs, device=device, logs=out / _LOGS, progress=progress)
    return load_sweep(out)


def load_sweep(path: str | Path) -> Sweep:
    """Load what there is of a sweep, also while an engine works on it.

    Args:
        path: folder of the sweep.

    Returns:
        The points with their metrics so far.

    Raises:
        RunError: there is no sweep, or a file is damaged.

    Example:
        >>> load_sweep("no/such/sweep")
        Traceback (most recent call last):
        ...
        mesaopt.errors.RunError: no/such/sweep/sweep.json: there is no such file
    """
    path = files.as_path(path)
    saved = _saved(path)
    problems = {}
    if files.exists(path / _LOGS / _PROBLEMS):
        problems = json_files.read(path / _LOGS / _PROBLEMS, {str: str})
    points = []
    for point in points_of(saved, path):
        folder = RunFolder(point.path)
        if files.exists(folder.path / "config.json"):
            problem = problems.get(folder.path.name)
            state = {"metrics": folder.metrics, "is_done": folder.is_done, "problem": problem}
            point = replace(point, **state)
        points.append(point)
    return Sweep(path, points)


def plan_sweep(configs: Sequence[RunConfig | str], out: str | Path) -> Sweep:
    """List the points that :func:`sweep` would train, and write nothing.

    Args:
        configs: as for :func:`sweep`.
        out: folder of the sweep.

    Returns:
        The points, none of which has begun.

    Raises:
        ConfigError: a configuration is wrong, or two are the same.

    Example:
        >>> from mesaopt.sweeps import grid
        >>> planned = plan_sweep(grid("lsa-1", {"train.steps": [100, 200]}, seeds=2), "runs/steps")
        >>> [point.path.name for point in planned.points][-1]
        'lsa-1-steps=200-seed1'
    """
    given = [as_config(config, f"configs[{i}]") for i, config in enumerate(configs)]
    _check(given)
    out = files.as_path(out)
    return Sweep(out, points_of(dict(zip(names_of(given), given, strict=True)), out))


def train_all(
    engine: Engine,
    runs: Mapping[Path, RunConfig],
    *,
    device: str,
    logs: Path,
    progress: AnyProgress,
) -> dict[Path, str]:
    """Have an engine train those of some runs that have not ended, and say which of them failed, and why.

    Args:
        engine: that was checked.
        runs: settings by the path of a folder, which is made where there is none.
        device: "auto", "cpu", "cuda" or "cuda:<number>".
        logs: folder for what the engine writes, and for the problems.
        progress: as in :func:`sweep`.

    Returns:
        The problems by the path of the folder.
    """
    for path, config in runs.items():
        if not files.exists(path / "config.json"):
            json_files.write(path / "config.json", to_dict(config))
    waiting = {path.absolute(): path for path in runs if not RunFolder(path).is_done}
    watched, problems = _Watched(runs), dict[Path, str]()
    files.remove(logs / _PROBLEMS)
    if not waiting:
        return problems
    with contextlib.ExitStack() as stack:
        jobs = engine.run(list(waiting), device=device, logs=logs.absolute())
        stack.enter_context(contextlib.closing(jobs))
        report = stack.enter_context(reporting(progress, logs.parent.name, earlier=watched.done))
        watched.look(waiting.values(), report)
        for ended in jobs:
            if ended is not None:
                path = waiting.pop(ended.folder)
                watched.end(path)
                if ended.problem is not None:
                    problems[path] = ended.problem
                    known = {path.name: problem for path, problem in problems.items()}
                    json_files.write(logs / _PROBLEMS, known)
            watched.look(waiting.values(), report)
    return problems


class _Watched:
    """The progress of all points, read from their folders."""

    def __init__(self, runs: Mapping[Path, RunConfig]):
        self._next = 0.0
        self._total = {path: config.train.steps for path, config in runs.items()}
        self._ended = {path for path in runs if RunFolder(path).is_done}
        self._steps = {path: _last_step(path) for path in runs}

    @property
    def done(self) -> int:
        """Finished steps of all points; those of points that have failed count as finished."""
        return sum(self._steps.values())

    def end(self, path: Path) -> None:
        """Count a point that has ended, well or not."""
        self._ended.add(path)
        self._steps[path] = self._total[path]
        self._next = 0.0

    def look(self, running: Iterable[Path], report: Report) -> None:
        """Read how far the others are, seldom enough that it costs little, and report it."""
        started = time.monotonic()
        if not report.has_listener or started < self._next:
            return
        for path in running:
            self._steps[path] = _last_step(path)
        stage = f"{len(self._ended)} of {len(self._total)} points"
        report(self.done, sum(self._total.values()), stage=stage)
        ended = time.monotonic()
        self._next = ended + max(_LOOK_EVERY_SECONDS, 10 * (ended - started))


def _last_step(path: Path) -> int:
    """Read the newest step of a run that another process writes now."""
    try:
        text = files.read_text(path / "metrics.jsonl")
        return int(json.loads(text[: text.rindex("\n")].splitlines()[-1])["step"])
    except (RunError, ValueError, LookupError):
        return 0


def _check(configs: Sequence[RunConfig]) -> None:
    """Refuse no points, equal ones, and those that a folder does not hold."""
    if not configs:
        raise ConfigError("configs=[]: must be one or more")
    first: dict[str, int] = {}
    for i, config in enumerate(configs):
        for part in ("task", "model"):
            if getattr(config, part).kind == "own":
                wanted = (
                    "must be one of the package: a job has the folder alone, which holds no code"
                )
                raise ConfigError(f"configs[{i}].{part}.kind='own': {wanted}")
        before = first.setdefault(json.dumps(to_dict(config)), i)
        if before != i:
            raise ConfigError(
                f"configs[{i}]: is the same as configs[{before}]: must all be different"
            )


def _require_same(out: Path, configs: Sequence[RunConfig], *, resume: bool) -> None:
    """Refuse a folder with other files or another sweep; nothing is written."""
    files.require_writable(out)
    if files.exists(out) and not files.is_folder(out):
        raise RunError(f"out={str(out)!r}: is a file; give a folder")
    names = files.names(out)
    if not names:
        return
    if FILE not in names:
        raise RunError(f"out={str(out)!r}: holds other files; give a new or an empty folder")
    if not resume:
        raise RunError(f"out={str(out)!r}: holds a sweep; {RESUME} goes on with the same points")
    theirs = list(_saved(out).values())
    if len(theirs) != len(configs):
        different = f"{len(theirs)} points, not {len(configs)}"
    else:
        lines = (differences(a, b) for a, b in zip(configs, theirs, strict=True))
        different = next((line for found in lines for line in found), "")
    if different:
        raise RunError(
            f"out={str(out)!r}: holds a sweep of other points ({different}); give the same ones or a new "
            "folder"
        )


def _saved(path: Path) -> dict[str, RunConfig]:
    """Read the settings of all points by their name."""
    file = path / FILE
    points = json_files.read(file, {"points": [{"name": str, "config": {}}]})["points"]
    return {one["name"]: from_dict(RunConfig, one["config"], where=str(file)) for one in points}
