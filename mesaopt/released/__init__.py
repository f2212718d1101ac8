"""The weights that the authors of the first paper released, as run folders: `mesaopt import-released`.

Nothing of their repository is in this package: a user's own clone of it is read, by a reader that rebuilds
arrays and refuses everything else.
"""

from mesaopt.released.importing import Imported, import_released
from mesaopt.released.networks import MISSING, RELEASED, Network, config_of
from mesaopt.released.reading import read_arrays
from mesaopt.released.threefry import normal, orthogonal, threefry2x32

__all__ = [
    "MISSING",
    "RELEASED",
    "Imported",
    "Network",
    "config_of",
    "import_released",
    "normal",
    "orthogonal",
    "read_arrays",
    "threefry2x32",
]
