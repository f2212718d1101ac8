"""The engine of a Ray cluster: a task for each folder, begun again where a worker or a node dies."""

import os
import socket
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesaopt.config.checks import require_not_negative, require_types
from mesaopt.errors import ConfigError, RunError, printable
from mesaopt.sweeps.engine import Ended, check_device_name, imported
from mesaopt.sweeps.job import train_folder

_REACH_SECONDS = 5.0
_SETTINGS = b"\x04"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
"""How a client of HTTP/2, which Ray speaks, begins; a server begins with its settings."""


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Trains folders in tasks of a Ray cluster, whose machines all have this package and see the folders.

    Example:
        >>> Ray(retries=-1)
        Traceback (most recent call last):
        ...
        mesaopt.errors.ConfigError: retries=-1: must be 0 or greater
    """

    address: str | None = None
    """HOST:PORT of a cluster, or "auto" for the one that this machine is part of; the variable RAY_ADDRESS
    if not given, and without that one that is started here for the run."""
    cpus: int = 1
    """Cores that a task reserves, and threads that it computes with."""
    gpus: float = 0.0
    """GPUs that a task reserves; 1 where the device is a GPU, if not given."""
    retries: int = 10
    """How often a task whose worker or node dies is begun again."""

    def __post_init__(self) -> None:
        require_types(self)
        require_not_negative(self, "cpus", "gpus", "retries")

    def check(self, device: str) -> None:
        """Make sure that Ray is installed, the device fits and the cluster answers."""
        check_device_name(device)
        if ":" in device:
            raise ConfigError(f"device={device!r}: must be auto, cpu or cuda: Ray chooses the GPU")
        if device == "cpu" and self.gpus:
            raise ConfigError(f"gpus={self.gpus}: must be 0 with device='cpu'")
        ray, address = imported("ray", extra="ray"), self._address
        if address is None or ray.is_initialized():
            return
        if address == "auto":
            self._connect(ray)
            ray.shutdown()
            return
        host, _, port = address.rpartition("://")[2].rpartition(":")
        try:
            with socket.create_connection((host, int(port)), _REACH_SECONDS) as connection:
                connection.sendall(_HELLO)
                if connection.recv(9)[3:4] != _SETTINGS:
                    raise ValueError("something else answers there")
        except (OSError, ValueError) as error:
            raise RunError(f"address={address!r}: no Ray cluster can be reached: {error}") from None

    def run(self, folders: Sequence[Path], *, device: str, logs: Path) -> Generator[Ended | None]:
        """Run the jobs, see :class:`mesaopt.sweeps.Engine`."""
        ray = imported("ray", extra="ray")
        is_ours = not ray.is_initialized()
        if is_ours:
            self._connect(ray)
        gpus = self.gpus or float(device.startswith("cuda"))
        options = {"num_cpus": self.cpus, "num_gpus": gpus, "max_retries": self.retries}
        task = ray.remote(**options)(train_folder)
        where = "cuda" if gpus else "cpu"
        running = {task.remote(str(path), where, max(self.cpus, 1)): path for path in folders}
        try:
            while running:
                for one in ray.wait(list(running), timeout=1.0)[0]:
                    yield Ended(running.pop(one), _problem(ray, one))
                yield None
        finally:
            for one in running:
                ray.cancel(one, force=True)
            if is_ours:
                ray.shutdown()

    @property
    def _address(self) -> str | None:
        return self.address or os.environ.get("RAY_ADDRESS")

    def _connect(self, ray: Any) -> None:
        """Connect to the cluster, or start one."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # print stays that of Python
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if self._address is None:
                ray.init(address="local", include_dashboard=False, **quiet)
            else:
                ray.init(address=self._address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            problem = printable(error).split(". ")[0]
            raise RunError(
                f"address={self._address!r}: no Ray cluster can be reached: {problem}"
            ) from error


def _problem(ray: Any, one: Any) -> str | None:
    """Return what a task came to."""
    try:
        return ray.get(one)
    except ray.exceptions.RayError as error:
        return f"Ray: {printable(error)}"
