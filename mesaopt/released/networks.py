"""The released networks: where each is in the authors' repository, and the settings of its run."""

from dataclasses import dataclass, replace

from mesaopt import recipes
from mesaopt.config import NonlinearSystemConfig, RunConfig, as_matrix
from mesaopt.released.threefry import normal, orthogonal

REPOSITORY = "github.com/mtavit/transformers_mesa_optimization_paper"
COMMIT = "c8c1e37"
"""The first commit, the only one that holds the weights."""
FOLDER = "experiment_results"
MISSING = (
    "linear_seq_fully/interpol_results_multi.pkl",
    "linear_seq_partial/all_models.pkl",
)
"""Files of the commit whose contents no clone has: six linear layers with wide heads, and the models of
partial observations by width."""

_MATRIX_SEED, _TEACHER_SEEDS = 42, (421, 422)
"""Seeds of the fixed W, and of A and B, in the authors' code."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """One released network.

    Example:
        >>> RELEASED[0].run, RELEASED[0].file
        ('lsa-1-seed68', 'linear_seq_fully/model_lin_1l_constr.pkl')
    """

    file: str
    """Path below `experiment_results`."""
    recipe: str
    """Name of the recipe of its model, task and training."""
    seed: int
    """The authors' seed."""
    folder: str = ""
    """Folder of the run folder, for networks of which there are others as published."""
    keys: str = "params"
    """Keys that lead to its parameters in the file."""
    unused: tuple[int, ...] = ()
    """Blocks in the file that no layer of the network reads."""
    steps: int | None = None
    """Training steps where they are not the recipe's."""
    learning_rate: float | None = None
    """Peak learning rate where it is not the recipe's."""
    weight_decay: float | None = None
    """Weight decay where it is not the recipe's."""
    stored: float | None = None
    """Mean loss that the authors stored for it, over 5 sets of 256 or 512 sequences; None where they did
    not."""

    @property
    def run(self) -> str:
        """Path of its run folder, below that of the import."""
        return f"{self.folder}{self.recipe}-seed{self.seed}"


def _constructed(
    prefix: str, linear: str, mesa: str, stored: tuple[float | None, ...]
) -> tuple[Network, ...]:
    """List the five networks on constructed tokens of one kind of transition matrix."""
    files = [linear.format(layers) for layers in (1, 2, 4, 6)] + [mesa]
    models = ("lsa-1", "lsa-2", "lsa-4", "lsa-6", "mesa-1")
    return tuple(
        Network(file=f"{_FULLY}/{file}", recipe=prefix + model, seed=68, stored=loss)
        for file, model, loss in zip(files, models, stored, strict=True)
    )


_FULLY, _NONLINEAR = "linear_seq_fully", "nonlinear_seq_fully"
_PROBED = f"{_FULLY}/tokenanalysis_full_params.pkl"
_SOFTMAX, _MESA = "model_sm_7l_fullfledged.pkl", "model_mesa_fullfledged.pkl"

_LINEAR = _constructed(
    "",
    "model_lin_{}l_constr.pkl",
    "model_mesa_constr.pkl",
    (0.89416, 0.43022, 0.23613, 0.21573, None),
)

RELEASED: tuple[Network, ...] = (
    # The recipes of one layer are those of the learning curves in Fig. 4A, of other trainings.
    replace(_LINEAR[0], steps=5000, learning_rate=1e-4, weight_decay=0.1),
    *_LINEAR[1:4],
    replace(_LINEAR[4], steps=5000),
    Network(
        file=f"{_FULLY}/model_sm_3l_fullfledged.pkl",
        recipe="tf-3",
        seed=11111,
        unused=(2, 3, 4, 5),
        stored=0.31531,
    ),
    Network(file=f"{_FULLY}/{_SOFTMAX}", recipe="tf-7", seed=11111, stored=0.23017),
    Network(file=f"{_FULLY}/{_MESA}", recipe="hybrid-mesa", seed=68, stored=0.19836),
    Network(
        file=_PROBED,
        keys="state_tf",
        folder="token-probes/",
        recipe="tf-7",
        seed=42,
        steps=20_000,
    ),
    Network(
        file=_PROBED,
        keys="state_mesa",
        folder="token-probes/",
        recipe="hybrid-mesa",
        seed=42,
        steps=12_000,
        learning_rate=8e-4,
    ),
    Network(file=_PROBED, keys="state_just_mesa", recipe="full-mesa-published", seed=42),
    Network(file=f"linear_seq_partial/{_SOFTMAX}", recipe="tf-7-partial", seed=42, stored=0.79526),
    Network(file=f"{_NONLINEAR}/{_SOFTMAX}", recipe="tf-7-nonlinear", seed=1, stored=0.03916),
    Network(file=f"{_NONLINEAR}/{_MESA}", recipe="hybrid-mesa-nonlinear", seed=1, stored=0.03746),
    Network(file=f"icl/{_SOFTMAX}", recipe="tf-7-few-shot", seed=68),
    Network(file=f"icl/{_MESA}", recipe="hybrid-mesa-few-shot", seed=68),
    Network(file="linearization/linearization_weights_20_params.pkl", recipe="softmax-2", seed=68),
    *_constructed(
        "contracting-",
        "contracting/contracting_tf_{}l_constr.pkl",
        "contracting/contracting_mesa_constr.pkl",
        (0.89045, 0.39508, 0.19341, 0.21909, 0.15360),
    ),
    *_constructed(
        "fixed-",
        "fixedw/fixedw_tf_{}l_constr.pkl",
        "fixedw/fixedw_mesa_constr.pkl",
        (0.10304, 0.01991, 0.01347, 0.00458, 0.00185),
    ),
)
"""All 27 networks of the 25 files that hold whole ones."""


def config_of(network: Network) -> RunConfig:
    """Make the configuration of a released network's run.

    It is that of the recipe, with the authors' seed and matrices, and the training of this network.

    Args:
        network: one of `RELEASED`.

    Returns:
        The configuration.

    Example:
        >>> config = config_of(RELEASED[0])
        >>> config.seed, config.train.steps
        (68, 5000)
    """
    config = recipes.get(network.recipe, seed=network.seed)
    names = ("steps", "learning_rate", "weight_decay")
    given = {name: getattr(network, name) for name in names if getattr(network, name) is not None}
    config = replace(config, train=replace(config.train, **given))
    return _with_unit_targets(_with_matrices(config))


def _with_matrices(config: RunConfig) -> RunConfig:
    """Give the tasks of one matrix, or of one teacher, those that the authors drew."""
    task = config.task
    if isinstance(task, NonlinearSystemConfig):
        # Their matrices act on rows from the right.
        first = 1.1 * normal(_TEACHER_SEEDS[0], (task.dim, task.hidden_dim))
        second = 1.1 * normal(_TEACHER_SEEDS[1], (task.hidden_dim, task.dim))
        task = replace(task, teacher_hidden=as_matrix(first.T), teacher_output=as_matrix(second.T))
    elif getattr(task, "transition", None) == "fixed":
        task = replace(task, matrix=as_matrix(orthogonal(_MATRIX_SEED, task.dim)))  # type: ignore[call-arg]
    return replace(config, task=task)


def _with_unit_targets(config: RunConfig) -> RunConfig:
    """Divide queries and values by their norms where the authors' mesa layer does."""
    model = config.sequence_model
    if "mesa" not in model.mixers or model.unit_queries_keys == "none":
        return config
    swapped = replace(model, unit_queries_keys="none", unit_queries_values="after_first")
    return replace(config, model=swapped)
