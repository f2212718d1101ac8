"""How much the measured numbers of `emergence2024` vary from one set of sequences to another.

    python benchmarks/emergence_noise.py

prints, for every number that a claim judges on sequences, its standard deviation over 32 sets of 4,000
training and 4,000 test sequences, times the root of 4,000. The limits of the claims use these numbers
(`_ROOT_SPREAD` in mesaopt/papers/emergence2024/laboratory.py). No reproduction uses the seeds, 1000 and up.
"""

import numpy as np

from mesaopt.papers.emergence2024.full_one import full_one_numbers
from mesaopt.papers.emergence2024.laboratory import draw_sample
from mesaopt.papers.emergence2024.one_step import gaussian_numbers

SETS, SEQUENCES, FIRST_SEED = 32, 4000, 1000


def main() -> None:
    """Measure and print."""
    for start, numbers_of in (("gaussian", gaussian_numbers), ("full_one", full_one_numbers)):
        sets = [
            numbers_of(draw_sample(start, seed, SEQUENCES, SEQUENCES))
            for seed in range(FIRST_SEED, FIRST_SEED + SETS)
        ]
        for name in sets[0]:
            values = np.array([numbers[name] for numbers in sets])
            spread = values.std(ddof=1) * SEQUENCES**0.5
            print(f"{name:25s} mean {values.mean():.5f}, root spread {spread:.3g}", flush=True)


if __name__ == "__main__":
    main()
