"""Time training steps of the authors' JAX code: a script for their interpreter, without mesaopt.

Started as `python official_process.py CLONE`. The first line of its input is the settings of a run as
JSON, as :func:`mesaopt.bench.official.settings_of` makes them; every line after it is a number of steps. It
prints a line when it is ready, and then the seconds that the steps took.
"""

import importlib
import json
import sys
import time


def main(clone, lines):
    """Prepare a training as the clone's notebook does, and run the steps asked for."""
    sys.path.insert(0, clone)
    jax, _ = importlib.import_module("jax"), importlib.import_module("flax.linen")
    model = importlib.import_module("src.models.full_fledged_transformer")
    sequences = importlib.import_module("src.data.seq.linear_seq")
    tokens = importlib.import_module("src.data.constr_data")
    optim, train = importlib.import_module("src.optim"), importlib.import_module("src.train")

    settings = json.loads(next(lines))
    data = sequences.LinearSequenceDataGenerator(**settings["data"])
    if settings["slots"]:
        data = tokens.ConstructedFullSeqGenerator(data_generator=data, embed_dim=settings["slots"])
    normal = jax.nn.initializers.normal(stddev=settings["initial_std"])
    training = train.Training(
        model=model.FullTransformerModel(initializer=normal, **settings["model"]),
        optimizer=optim.Optimizer(**settings["optimizer"]).get_optimizer(),
        data_generator=data,
        interpolate=False,
        sensitivity_analysis=False,
        batch_size=settings["batch_size"],
        test_batch_size=settings["batch_size"],
    )
    state, key = training.get_init_state(jax.random.PRNGKey(0), interpol_call=False)
    print("ready", flush=True)
    for line in lines:
        started = time.perf_counter()
        for _ in range(int(line)):
            key, batch_key = jax.random.split(key, 2)
            batch, _ = data.get_data(rng=batch_key, batch_size=settings["batch_size"])
            state, _, _ = training.fast_train_step(state, batch=batch, interpol_call=False)
        jax.block_until_ready(state)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], iter(sys.stdin))
