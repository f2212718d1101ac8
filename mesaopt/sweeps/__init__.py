"""Sweeps: many runs at once, on the cores of this machine, a Ray cluster or a Slurm cluster.

Every point of a sweep is an ordinary run folder. An engine does one thing: its jobs train folders to
their end, each from its newest checkpoint.
"""

from mesaopt.sweeps.engine import ENGINES, Ended, Engine, make_engine
from mesaopt.sweeps.grid import grid, parse_grid
from mesaopt.sweeps.job import train_folder
from mesaopt.sweeps.local_engine import Local
from mesaopt.sweeps.points import Group, Point, Sweep
from mesaopt.sweeps.sweep import load_sweep, plan_sweep, sweep, train_all

__all__ = [
    "ENGINES",
    "Ended",
    "Engine",
    "Group",
    "Local",
    "Point",
    "Sweep",
    "grid",
    "load_sweep",
    "make_engine",
    "parse_grid",
    "plan_sweep",
    "sweep",
    "train_all",
    "train_folder",
]
