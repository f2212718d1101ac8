"""Tasks and models of one's own: trained, stopped, resumed, loaded, evaluated, refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from helpers import Interrupted, exit_status, interrupt
from own_tasks import Changed, Net, Regression
from torch import nn

import mesaopt
from mesaopt.analysis import Evaluation, in_context_loss, model_predictor
from mesaopt.config import MergedAttentionConfig, MixerName, ModelConfig, RunConfig, from_dict
from mesaopt.errors import ConfigError, MesaoptError, RunError
from mesaopt.tasks import Batch, make_task, own_task
from mesaopt.training import DivergedError, Trainer, load_run, own_run, train, train_seeds

SHORT = {"steps": 6, "batch_size": 8, "evaluate_every": 2, "evaluation_sequences": 16}
SHORT |= {"learning_rate": 1e-2}
SMALL = ModelConfig(
    token_dim=5, output_dim=1, embed_dim=4, readout="linear", num_heads=2, initial_std=0.3
)
HERE = ["--device", "cpu"]


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_task_of_tokens_and_targets_is_learnt_and_evaluated(tmp_path: Path) -> None:
    settings = SHORT | {"steps": 300, "batch_size": 64, "evaluate_every": 150}
    settings |= {"evaluation_sequences": 256}
    run = mesaopt.train(model=SMALL, task=Regression(), out=tmp_path, device="cpu", **settings)
    losses = [line["test_loss"] for line in run.metrics]
    assert losses[-1] < 0.9 * losses[0]
    assert run.config.recipe == "Regression"
    predict = model_predictor(run.model, run.config.task.token_slots)
    evaluation = Evaluation(num_sequences=256)
    losses_of = in_context_loss({"model": predict, "run": run}, Regression(), evaluation)
    loss = losses_of["model"]
    assert loss.mean == losses_of["run"].mean
    # The run's own task is rounded to float32, the object given here is not.
    by_itself = in_context_loss(run, evaluation=evaluation).mean
    assert by_itself == pytest.approx(loss.mean, rel=1e-6)
    assert loss.mean == pytest.approx(losses[-1], rel=1e-5)  # the same sequences
    assert list(loss.positions) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("model", [SMALL, Net, Net(), "own_tasks:Net"])
def test_a_stopped_run_continues_bit_for_bit(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(name: str) -> mesaopt.training.Run:
        how = {"model": model, "task": Regression(), "device": "cpu", "resume": True}
        return train(out=tmp_path / name, seed=3, **how, **SHORT)

    whole = start("whole")
    interrupt(Trainer, "step", after=3, patch=monkeypatch)
    with pytest.raises(Interrupted):
        start("halves")
    monkeypatch.undo()
    resumed = start("halves")
    assert whole.metrics == resumed.metrics
    assert len(whole.metrics) == 4
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])


@pytest.mark.parametrize("mixer", get_args(MixerName))
def test_every_operator_trains_on_a_task_of_ones_own(mixer: MixerName, tmp_path: Path) -> None:
    model = replace(SMALL, mixers=(mixer,))
    settings = SHORT | {"steps": 2}
    run = train(model=model, task=Regression(), out=tmp_path, device="cpu", **settings)
    assert run.metrics[-1]["step"] == 2
    assert run.metrics[-1]["test_loss"] != run.metrics[0]["test_loss"]


def test_a_class_has_weights_of_its_own_for_every_seed_and_a_module_its_own_for_all(
    tmp_path: Path,
) -> None:
    before = torch.get_rng_state()
    module = Net()
    for model, same in ((Net, False), (module, True)):
        torch.set_rng_state(before)
        config = own_run(model, Regression(), **SHORT)
        first, second = (Trainer(replace(config, seed=s), torch.device("cpu")) for s in (0, 1))
        assert first.model.first.weight.equal(second.model.first.weight) is same
        assert torch.get_rng_state().equal(before)
    weights = module.first.weight.clone()
    trained = train(model=module, task=Regression(), out=tmp_path / "x", device="cpu", **SHORT)
    assert module.first.weight.equal(weights), "the user's module is left as it is"
    assert trained.model.frozen.equal(module.frozen)
    assert not trained.model.first.weight.equal(weights)


def test_seeds_of_a_task_of_ones_own_train_side_by_side(tmp_path: Path) -> None:
    config = own_run(SMALL, Regression(), **SHORT)
    configs = [replace(config, seed=seed) for seed in (0, 1)]
    runs = train_seeds(configs, [tmp_path / "0", tmp_path / "1"], device="cpu")
    alone = train(configs[1], tmp_path / "alone", device="cpu")
    assert runs[1].metrics[-1]["test_loss"] == pytest.approx(
        alone.metrics[-1]["test_loss"], rel=1e-4
    )


def test_a_folder_is_loaded_with_the_task_and_the_module_given_again(tmp_path: Path) -> None:
    run = train(model=Net, task=Regression(), out=tmp_path, device="cpu", **SHORT)
    with pytest.raises(ConfigError, match="model='Net': is a module of your own.*give it again"):
        load_run(tmp_path)
    loaded = load_run(tmp_path, model=Net, device="cpu")
    assert all(map(torch.equal, loaded.model.parameters(), run.model.parameters()))
    with pytest.raises(ConfigError, match="task='Regression': is a task of your own.*give it"):
        make_task(loaded.config.task)
    again = load_run(tmp_path, model="own_tasks:Net", task="own_tasks:Regression", device="cpu")
    assert isinstance(again.config.task.task, Regression)
    assert make_task(again.config.task).sample(2, seed=0).tokens.shape == (2, 6, 5)


def test_another_task_or_module_is_not_that_of_the_run(tmp_path: Path) -> None:
    train(model=Net, task=Regression(), out=tmp_path, device="cpu", **SHORT)
    before = contents(tmp_path)
    cases = [
        ({"task": Regression(scale=2.0), "model": Net}, "task.first_batch"),
        ({"task": Regression(length=7), "model": Net}, "task.length: 7, not 6"),
        ({"task": Regression(), "model": nn.Linear(5, 1)}, "model.weights.again.bias: None, not"),
        ({"task": Regression(), "model": lambda: Net(width=5)}, r"float32 \[5, 5\]', not"),
    ]
    for given, message in cases:
        with pytest.raises(RunError, match=f"is not the one of this run .*{message}"):
            load_run(tmp_path, **given)
        with pytest.raises(RunError, match=f"holds a run with other settings .*{message}"):
            train(out=tmp_path, resume=True, device="cpu", **given, **SHORT)
    assert contents(tmp_path) == before


def test_a_run_of_the_library_takes_no_task(short_config: RunConfig, tmp_path: Path) -> None:
    train(short_config, tmp_path, device="cpu")
    with pytest.raises(RunError, match="task.kind='linear_system': no task may be given"):
        load_run(tmp_path, task=Regression())


def test_the_folder_of_a_stranger_runs_no_code(tmp_path: Path) -> None:
    train(model="own_tasks:Net", task="own_tasks:Regression", out=tmp_path, device="cpu", **SHORT)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    assert data["task"]["name"] == "own_tasks:Regression"
    data["task"]["name"] = data["model"]["name"] = "no_such_module_as_this:Evil"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="no file holds"):  # not: cannot be imported
        load_run(tmp_path)
    assert load_run(tmp_path, model=Net, device="cpu").metrics[-1]["step"] == 6
    data["task"]["task"] = "print"
    with pytest.raises(ConfigError, match="unknown key 'task'"):
        from_dict(RunConfig, data)


def changed(name: str, change: Callable[[Any], Any]) -> Callable[..., Batch]:
    """A change of one field, behind the back of the checks that tests make of every batch."""

    def apply(batch: Batch, **_: object) -> Batch:
        object.__setattr__(batch, name, change(getattr(batch, name)))
        return batch

    return apply


def _global_torch(batch: Batch, *, seed: int, **_: object) -> Batch:
    torch.manual_seed(seed)
    return batch


def _again(batch: Batch, *, calls: list[int] = []) -> Batch:  # noqa: B006
    calls.append(0)
    return replace(batch, tokens=batch.tokens + len(calls))


WRONG_BATCHES = {
    "returns something of type dict: must be a mesaopt.tasks.Batch": lambda batch, **_: {
        "tokens": batch.tokens
    },
    "tokens is of type list: must be a tensor": changed("tokens", lambda x: x.tolist()),
    r"targets has shape \(8, 6\): must be \[batch, time, width\]": changed(
        "targets", lambda x: x[..., 0]
    ),
    "tokens has torch.int64: must be of floating-point": changed("tokens", lambda x: x.long()),
    "targets has 5 positions, tokens 6: must be the same": changed("targets", lambda x: x[:, 1:]),
    r"tokens has shape \(7, 6, 5\): must begin with batch_size=8": changed(
        "tokens", lambda x: x[1:]
    ),
    "tokens is not finite at step=0, split='train'": changed("tokens", lambda x: x / 0),
    "states is not finite": lambda batch, **_: replace(batch, states=batch.targets / 0),
    "scored=slice.6, None, None.: must be a slice of one position": changed(
        "scored", lambda _: slice(6, None)
    ),
    "uses the global random numbers": _global_torch,
    "gives another batch for the same seed, step and split": lambda batch, **_: _again(batch),
    "step=1.: gives the sequences of step=0": lambda _, seed, step, split: Regression().sample(
        8, seed=seed, step=0, split=split
    ),
    "split='test'.: gives the sequences of": lambda batch, seed, step, split: Regression().sample(
        len(batch.tokens), seed=seed, step=step, split="train"
    ),
    r"targets has shape \(9, 6, 2\): must be \(9, 6, 1\), as before": lambda batch, **_: (
        batch
        if len(batch.tokens) == 8
        else replace(batch, targets=torch.cat([batch.targets] * 2, dim=2))
    ),
}


@pytest.mark.parametrize("message", WRONG_BATCHES)
def test_a_wrong_batch_gets_its_sentence(message: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=f"^task.sample.*{message}") as error:
        train(model=SMALL, task=Changed(WRONG_BATCHES[message]), out=tmp_path / "x", **SHORT)
    torch.set_rng_state(before)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def _numpy_fails(batch: Batch) -> Batch:
    np.linalg.inv(np.zeros((2, 2)))
    raise AssertionError


def _torch_fails(batch: Batch) -> Batch:
    torch.linalg.inv(torch.zeros(2, 2))
    raise AssertionError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("tokens", lambda x: x / 0), "tokens is not finite at step=3, split='train'"),
        (changed("tokens", lambda x: x[:, 1:]), "targets has 6 positions, tokens 5"),
        (changed("targets", lambda x: torch.cat([x, x], dim=2)), "targets has shape .* as before"),
        (_numpy_fails, r"task.sample\(step=3, split='train'\): Singular matrix"),
        (_torch_fails, r"task.sample\(step=3, split='train'\): linalg.inv: The diagonal element"),
    ],
)
def test_a_wrong_batch_of_a_later_step_is_no_divergence(
    change: Callable[[Batch], Batch], message: str, tmp_path: Path
) -> None:
    def at_step_3(batch: Batch, *, step: int, split: str, **_: object) -> Batch:
        return change(batch) if (step, split) == (3, "train") else batch

    wanted = RuntimeError if change in (_numpy_fails, _torch_fails) else ConfigError
    with pytest.raises(wanted, match=message) as error:
        train(model=SMALL, task=Changed(at_step_3), out=tmp_path / "x", device="cpu", **SHORT)
    assert not isinstance(error.value, DivergedError)
    assert "learning_rate" not in str(error.value)


def test_fixed_data_may_be_the_same_at_every_step() -> None:
    def of_step_0(batch: Batch, *, seed: int, step: int, split: str) -> Batch:
        return Regression().sample(len(batch.tokens), seed=seed, step=0, split=split)

    config = own_run(SMALL, Changed(of_step_0), data="fixed")
    assert config.train.data == "fixed"


class NoKeywords:
    def sample(self, batch_size: int) -> Batch:
        raise AssertionError


class Wrapped(nn.Module):
    """A module whose output a function changes."""

    def __init__(self, change: Callable[[torch.Tensor], Any], net: nn.Module):
        super().__init__()
        self.change, self.net = change, net

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.change(self.net(tokens))


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        (SMALL, 3, r"task: is of type int: must be an object with sample\(batch_size, \*, seed"),
        (SMALL, Regression, "task: is the class Regression: must be an object"),
        (SMALL, NoKeywords(), "task.sample: got an unexpected keyword argument 'seed': must be"),
        (SMALL, "own_tasks", "task='own_tasks': must look like module:Class"),
        (SMALL, "own_tasks:Nothing", "task='own_tasks:Nothing': cannot be imported: module"),
        (ModelConfig(), Regression(), "model.token_dim=40: must be 5, the task's token_dim"),
        (MergedAttentionConfig(), Regression(), "model.kind='merged_attention': must be 'seq"),
        (None, None, "task: is missing: give config, or task, and model if you have one"),
        (3, Regression(), "model: is of type int: must be a ModelConfig, a torch.nn.Module, or"),
        (dict, Regression(), "model: makes something of type dict: must make a torch.nn.Module"),
        (nn.Identity(), Regression(), "model: Identity has no weights to train: must have some"),
        (nn.Linear(4, 1), Regression(), r"given float32 \[2, 6, 5\] tokens, it raised RuntimeE"),
        (nn.Linear(5, 2), Regression(), r"its output has shape \(2, 6, 2\): must be \(2, 6, 1\)"),
        (
            Wrapped(lambda x: [x], Net()),
            Regression(),
            "its output is of type list: must be a tensor",
        ),
        (Wrapped(lambda x: x / 0, Net()), Regression(), "its output is not finite at the first"),
        (Wrapped(torch.detach, Net()), Regression(), "its output depends on no weight that is"),
        (nn.Sequential(Net(), nn.Dropout()), Regression(), "its output is random: must be a func"),
        (
            nn.Sequential(Net(), nn.BatchNorm1d(6)),
            Regression(),
            "its buffer '1.running_mean' changes when it predicts: must be left",
        ),
    ],
)
def test_a_wrong_task_or_model_gets_its_sentence(
    model: Any, task: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(MesaoptError, match=message) as error:
        train(model=model, task=task, out=tmp_path / "x", device="cpu", **SHORT)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_wrong_arguments_of_train_get_their_sentence(short_config: RunConfig) -> None:
    with pytest.raises(TypeError, match="config is an int: must be a RunConfig"):
        train(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps: must not be given with config"):
        train(short_config, steps=3)
    with pytest.raises(ConfigError, match="stesp: is no setting.*did you mean 'steps'"):
        train(model=SMALL, task=Regression(), stesp=3)
    with pytest.raises(ConfigError, match="keywords=.*: must be made of numbers, text"):
        own_task(Regression(), keywords={"scale": object()})


def test_batches_are_rounded_to_single_precision() -> None:
    config = own_task(Regression())
    exact = Regression().sample(4, seed=1, step=2, split="test")
    drawn = make_task(config).sample(4, seed=1, step=2, split="test")
    assert exact.tokens.dtype == torch.float64
    assert drawn.tokens.equal(exact.tokens.float())
    assert drawn.targets.equal(exact.targets.float())


def test_the_command_line_trains_resumes_and_evaluates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--task", "own_tasks:Regression", "--model", "own_tasks:Net"]
    short = [f"train.{name}={value}" for name, value in SHORT.items()]
    start = ["train", *own, "--out", str(tmp_path / "run"), *HERE, "--set", *short]
    start += ["task.dim=3", "model.tokens=7"]
    assert exit_status(*start) == 0
    (tmp_path / "run" / "DONE").unlink()
    assert exit_status(*start, "--resume") == 0
    capsys.readouterr()
    assert exit_status("evaluate", str(tmp_path / "run"), "--json", *own, "--sequences", "256") == 0
    losses = json.loads(capsys.readouterr().out)
    assert list(losses) == ["Regression-Net", "predict zero"]
    assert len(losses["predict zero"]["by_position"]) == 6
    assert exit_status("evaluate", str(tmp_path / "run")) == 2
    assert "--model module:Class on the command line" in capsys.readouterr().err


def test_the_command_line_fits_a_recipe_to_the_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "tf-3", "--task", "own_tasks:Regression", "--dry-run", *HERE]
    command += ["--set", "train.batch_size=4"]
    assert exit_status(*command) == 0
    assert '"token_dim": 5' in capsys.readouterr().out
    assert exit_status("train", "--task", "own_tasks:Regression", "--set", "steps=3") == 2
    assert "set='steps=3': must look like" in capsys.readouterr().err
    assert exit_status("train") == 2
    assert "recipe: is missing" in capsys.readouterr().err
