"""Sweeps on a Ray cluster of two nodes on this machine, while workers and a node die."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for_lines

import mesaopt
from mesaopt import recipes
from mesaopt.config import override
from mesaopt.errors import RunError
from mesaopt.sweeps import grid, plan_sweep
from mesaopt.sweeps.ray_engine import Ray
from mesaopt.training import train

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of another package

SHORT = ["train.batch_size=8", "train.evaluate_every=15", "train.evaluation_sequences=16"]
CONFIG = override(recipes.get("lsa-1"), [*SHORT, "train.steps=210", "task.length=8"])
RATES = {"train.learning_rate": ["1e-3", "1e-2"]}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and a second node, with a core each, that are soon missed when they die."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def task_of(node: Any) -> int:
    """Find the process of a node that trains a folder now."""
    (raylet,) = node.all_processes["raylet"]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            name = path.read_bytes()
            if parent == raylet.process.pid and name.startswith(b"ray::train_folder"):
                return int(path.parent.name)
    raise AssertionError("no folder is trained there")


@pytest.mark.slow
def test_every_point_ends_with_the_same_numbers_though_a_worker_and_a_node_die(
    cluster: Any, tmp_path: Path
) -> None:
    points = plan_sweep(grid(CONFIG, RATES, seeds=2), tmp_path / "out").points
    metrics = [point.path / "metrics.jsonl" for point in points]
    (other,) = cluster.worker_nodes
    died: list[str] = []

    def kill() -> None:
        for path in metrics[:2]:
            wait_for_lines(path, 2)
        os.kill(task_of(cluster.head_node), signal.SIGKILL)
        died.append("a worker")
        task_of(other)  # or there is nothing to lose
        cluster.remove_node(other, allow_graceful=False)
        died.append("a node")

    killer = threading.Thread(target=kill)
    killer.start()
    printing = print
    engine, configs = Ray(address=cluster.address), [point.config for point in points]
    done = mesaopt.sweep(configs, tmp_path / "out", engine=engine, progress=False)
    killer.join()
    assert died == ["a worker", "a node"]
    assert [point.problem for point in done.points] == [None] * 4
    assert not ray.is_initialized()
    for point, path in zip(points, metrics, strict=True):
        alone = train(point.config, tmp_path / "alone" / point.path.name, device="cpu")
        assert path.read_bytes() == (alone.path / "metrics.jsonl").read_bytes()
    assert print is printing  # Ray would put its own in its place


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "head", "a:b"])
def test_a_cluster_that_cannot_be_reached_is_refused_at_once(address: str, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        engine = Ray(address=address.format(port=nobody.getsockname()[1]))
        started = time.monotonic()
        with pytest.raises(RunError, match=r"^address='.*': no Ray cluster can be reached: .+"):
            mesaopt.sweep([CONFIG], tmp_path / "out", engine=engine)
    assert time.monotonic() - started < 10
    assert not (tmp_path / "out").exists()


def test_a_port_of_something_else_is_refused_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as client:
                client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                client.recv(100)

        threading.Thread(target=answer).start()
        engine = Ray(address=f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(RunError, match="can be reached: something else answers there"):
            mesaopt.sweep([CONFIG], tmp_path / "out", engine=engine)
