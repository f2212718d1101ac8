"""Checks of this machine that need no torch: what `mesaopt doctor` says at once."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from mesaopt import files
from mesaopt.errors import RunError

GIB = 2**30
_OPTIONAL = {
    "pandas": "tables of results as data frames",
    "tensorboard": "curves of a training in TensorBoard",
    "wandb": "curves of a training in Weights & Biases",
    "trackio": "curves of a training in trackio",
    "triton": "mesa on a GPU through torch.compile",
    "flash-linear-attention": "a comparison in `mesaopt bench ops`",
}
_CGROUP = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and the verdict."""

    name: str
    verdict: Literal["ok", "slow", "missing"]
    found: str
    advice: str = ""
    """The reason for another verdict than ok, and what to do."""
    needed: bool = True
    """Whether nothing works without it; else the status is 0 although it is missing."""

    @property
    def fails(self) -> bool:
        """Whether something is missing that is needed."""
        return self.needed and self.verdict == "missing"

    def describe(self) -> dict[str, str]:
        """Return the cells of the table."""
        optional = "" if self.needed or self.verdict != "missing" else ", not needed"
        return {
            "": f"{self.verdict}{optional}",
            "what": self.name,
            "here": self.found,
            "what to do": self.advice,
        }


def quick_checks() -> list[Check]:
    """Check versions, processor, threads, memory, disk, GPU and optional packages."""
    looks: tuple[Callable[[], Iterator[Check]], ...] = (
        _software,
        _processor,
        _threads,
        _load,
        _memory,
        _disk,
        _gpu,
        _fonts,
        _optional,
    )
    return [check for look in looks for check in look()]


def _software() -> Iterator[Check]:
    wanted = metadata.metadata("mesaopt")["Requires-Python"] or ""
    here = platform.python_version()
    advice = f"mesaopt needs Python {wanted}"
    yield _required("python", here, here if satisfies(here, wanted) else None, advice)
    for line in metadata.requires("mesaopt") or []:
        name, specifiers = re.match(r"([\w.-]+)\s*([^;]*)", line).groups()  # type: ignore[union-attr]
        if "extra ==" not in line:
            found = version_of(name)
            good = found is not None and satisfies(found, specifiers)
            advice = f'pip install "{name}{specifiers.strip()}"'
            yield _required(name, found or "none", found if good else None, advice)


def _required(name: str, found: str, good: str | None, advice: str) -> Check:
    return Check(name, "ok", found) if good else Check(name, "missing", found, advice)


def version_of(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def satisfies(version: str, specifiers: str) -> bool:
    """Say whether a version is in a range such as ">=2.6,<2.14".

    Example:
        >>> satisfies("2.13.0+cpu", ">=2.6,<2.14"), satisfies("2.14", ">=2.6,<2.14")
        (True, False)
    """
    compare = {
        ">=": lambda a, b: a >= b,
        "<": lambda a, b: a < b,
        "==": lambda a, b: a == b,
    }
    pairs = re.findall(r"(>=|==|<)\s*([\w.]+)", specifiers)
    return all(compare[sign](_numbers(version), _numbers(limit)) for sign, limit in pairs)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version; what is left out is 0."""
    numbers = [int(number) for number in re.findall(r"\d+", version.split("+")[0])][:3]
    return tuple(numbers + [0] * (3 - len(numbers)))


def _processor() -> Iterator[Check]:
    info = _text(Path("/proc/cpuinfo"))
    names = re.findall(r"^model name\s*:\s*(.+)$", info, re.M)
    name = names[0] if names else platform.processor() or platform.machine()
    flags = set(" ".join(re.findall(r"^flags\s*:\s*(.+)$", info, re.M)[:1]).split())
    if not flags:
        yield Check("processor", "ok", name)
        return
    best = next((flag for flag in ("avx512f", "avx2") if flag in flags), None)
    words = {"avx512f": "AVX-512", "avx2": "AVX2, no AVX-512"}.get(best or "", "no AVX2")
    slow = "trainings take up to twice as long" if best else "trainings take many times as long"
    advice = "" if best == "avx512f" else f"{slow} as on a processor with AVX-512"
    yield Check("processor", "ok" if best == "avx512f" else "slow", f"{name}, {words}", advice)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _threads() -> Iterator[Check]:
    cores, given = num_cores(), os.environ.get("OMP_NUM_THREADS", "")
    quota = _quota()
    threads = int(given) if given.isdigit() else cores
    found = f"{threads} threads, {cores} cores"
    if quota is not None and quota < threads:
        advice = (
            f"a container allows {quota:g} cores: export OMP_NUM_THREADS={max(1, round(quota))}"
        )
        yield Check("threads", "slow", found, advice)
    elif threads < cores:
        yield Check("threads", "slow", found, "OMP_NUM_THREADS leaves cores idle: unset it")
    elif threads > cores:
        advice = f"threads wait for one another: export OMP_NUM_THREADS={cores}"
        yield Check("threads", "slow", found, advice)
    else:
        yield Check("threads", "ok", found)


def _quota() -> float | None:
    """Return the number of cores that a container may use; None without a limit."""
    match = re.fullmatch(r"(\d+) (\d+)\s*", _text(_CGROUP))
    return int(match[1]) / int(match[2]) if match else None


def _load() -> Iterator[Check]:
    busy, cores = os.getloadavg()[0], num_cores()
    found = f"{busy:.1f} programs compute, {cores} cores"
    if busy > 0.5 * cores:
        yield Check(
            "other programs", "slow", found, "wait until they have ended, or expect longer times"
        )
    else:
        yield Check("other programs", "ok", found)


def _memory() -> Iterator[Check]:
    match = re.search(r"^MemAvailable:\s*(\d+) kB", _text(Path("/proc/meminfo")), re.M)
    if match is None:
        return
    free = int(match[1]) * 1024 / GIB
    found = f"{free:.1f} GiB free"
    if free < 0.5:
        yield Check("memory", "missing", found, "end other programs: torch alone takes 0.3 GiB")
    elif free < 2:
        advice = "enough for every recipe; large studies may swap: end other programs"
        yield Check("memory", "slow", found, advice)
    else:
        yield Check("memory", "ok", found)


def _disk() -> Iterator[Check]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free / GIB
    found = f"{free:.1f} GiB free in {here}"
    if not os.access(here, os.W_OK):
        advice = "this folder cannot be written to: change to another, or give --out"
        yield Check("disk", "missing", found, advice)
    elif free < 1:
        advice = "runs may stop for lack of it: free some, or give --out on another disk"
        yield Check("disk", "missing", found, advice)
    else:
        yield Check("disk", "ok", found)


def _gpu() -> Iterator[Check]:
    cards = gpu_names()
    build = (version_of("torch") or "").partition("+")[2]
    if not cards:
        found = "none; every recipe fits a CPU"
        yield Check(
            "GPU", "missing", found, "nothing: a GPU trains several seeds at once", needed=False
        )
    elif build == "cpu":
        advice = "this torch computes on CPUs only: pip install --force-reinstall torch"
        yield Check("GPU", "slow", ", ".join(cards), advice)
    else:
        yield Check("GPU", "ok", ", ".join(cards))


def gpu_names() -> list[str]:
    """Return the names of the NVIDIA cards, as their driver gives them; Apple's are not used."""
    folder = Path("/proc/driver/nvidia/gpus")
    texts = (_text(folder / name / "information") for name in files.names(folder))
    names = [match[1] for text in texts if (match := re.search(r"^Model:\s*(.+)$", text, re.M))]
    return names or (["NVIDIA, of unknown kind"] if shutil.which("nvidia-smi") else [])


def _fonts() -> Iterator[Check]:
    try:
        plots = metadata.distribution("matplotlib")
    except metadata.PackageNotFoundError:
        return
    font = "DejaVuSans.ttf"
    if Path(str(plots.locate_file(f"matplotlib/mpl-data/fonts/ttf/{font}"))).exists():
        yield Check("fonts", "ok", "DejaVu Sans, with matplotlib")
    else:
        advice = "figures are drawn in another font: pip install --force-reinstall matplotlib"
        yield Check("fonts", "missing", "none with matplotlib", advice, needed=False)


def _optional() -> Iterator[Check]:
    for package, use in _OPTIONAL.items():
        found = version_of(package)
        if found is None:
            advice = f"for {use}: pip install {package}"
            yield Check(package, "missing", "none", advice, needed=False)
        else:
            yield Check(package, "ok", found)


def _text(path: Path) -> str:
    """Read a file of the system; nothing where there is none."""
    try:
        return files.read_text(path)
    except (RunError, OSError):
        return ""
