"""A wrong type works where its meaning is plain, and else gets a sentence."""

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import exit_status

import mesaopt
from mesaopt import analysis, recipes, training
from mesaopt.config import (
    ARProcessConfig,
    AutoEncoderConfig,
    FewShotConfig,
    LanguageModelConfig,
    LinearSystemConfig,
    MergedAttentionConfig,
    ModelConfig,
    TrainConfig,
)
from mesaopt.errors import RunError
from mesaopt.layers import MergedLinearSelfAttention, MesaLayer, SoftmaxSelfAttention
from mesaopt.models import AutoEncoder, LanguageModel, OneLayerModel, SequenceModel, make_model
from mesaopt.tasks import ARProcess, FewShot, LinearSystem, Parity, make_task
from mesaopt.theory import gradient_descent, neumann_inverse, proposition_1
from mesaopt.training import Run, RunFolder, load_run, train
from mesaopt.zoo import FOLDER

RUN = FOLDER / "lsa-1"
SMALL = analysis.Evaluation(num_sequences=1)
TUNING = analysis.Evaluation(num_sequences=1, split="validation")
RESULTS = Path(__file__).parent / "data" / "results"


pytestmark = pytest.mark.usefixtures("_unchecked")


@pytest.fixture(scope="module")
def run() -> Run:
    return mesaopt.load("lsa-1")


@pytest.fixture(scope="module")
def task(run: Run) -> LinearSystem:
    return LinearSystem(run.config.task)


def few_shot() -> FewShot:
    return FewShot(FewShotConfig(length=6, prefix_length=1))


def probe(model: Any, task: Any) -> Any:
    targets = {"next": analysis.next_token}
    return analysis.probe_layers(model, task, targets, positions=[5], num_fit=300, num_score=1)


def collect(model: Any, task: Any) -> Any:
    targets = {"next": analysis.next_token}
    return analysis.collect_activations(model, task, targets, positions=[5], evaluation=SMALL)


def capturing(model: Any, batch: Any) -> Any:
    with analysis.capturing(model, ["blocks.0"]) as activations:
        return activations


def evaluating(model: Any, _: Any) -> None:
    with analysis.evaluating(model):
        pass


def patching(model: Any, _: Any) -> None:
    with analysis.patching(model, {}):
        pass


# Every public function of a model, called with (model, task).
OF_MODELS: dict[str, Callable[[Any, Any], Any]] = {
    "ablate": lambda model, task: analysis.ablate(model, task, ["blocks.0"], evaluation=SMALL),
    "attention_maps": lambda model, task: analysis.attention_maps(
        model, task.sample(2, seed=0), name="blocks.0.mixer"
    ),
    "capture": lambda model, task: analysis.capture(model, task.sample(2, seed=0), ["blocks.0"]),
    "captured_names": lambda model, _: analysis.captured_names(model),
    "capturing": capturing,
    "collect_activations": collect,
    "compress": lambda model, _: analysis.compress(model),
    "diagnose": lambda model, task: analysis.diagnose(model, task, num_sequences=1),
    "evaluating": evaluating,
    "few_shot_losses": lambda model, _: analysis.few_shot_losses(model, few_shot(), None, SMALL),
    "in_context_loss": lambda model, task: analysis.in_context_loss(model, task, SMALL),
    "in_context_loss of several": lambda model, task: analysis.in_context_loss(
        {"mine": model}, task, SMALL
    ),
    "interpolate": lambda model, _: analysis.interpolate(model, model),
    "linearize": lambda model, task: analysis.linearize(model, task, steps=1, num_sequences=1),
    "measure_mixers": lambda model, task: analysis.measure_mixers(model, task.sample(2, seed=0)),
    "model_predictor": lambda model, task: analysis.model_predictor(model, ("current",)),
    "patch": lambda model, task: analysis.patch(model, task.sample(2, seed=0), {"blocks.0": 0.0}),
    "patching": patching,
    "probe_layers": probe,
    "product_form": lambda model, _: analysis.product_form(model),
    "sensitivity": lambda model, task: analysis.sensitivity(
        model, task.sample(1, seed=0), name="blocks.0", position=2
    ),
    "stream_names": lambda model, _: analysis.stream_names(model),
    "token_scores": lambda model, _: analysis.token_scores({"mine": model}, Parity(), SMALL),
    "tune_prompt": lambda model, _: analysis.tune_prompt(model, few_shot(), steps=1, batch_size=1),
    "up_to": lambda model, _: analysis.up_to(model, "blocks.0"),
}
FEW_SHOT = {"few_shot_losses", "tune_prompt"}  # need a model of bare tokens
OTHERS = FEW_SHOT | {"diagnose", "linearize", "token_scores"}  # need another model, or time

# Every public function of a task.
OF_TASKS: dict[str, Callable[[Any, Any], Any]] = {
    "ablate": OF_MODELS["ablate"],
    "collect_activations": collect,
    "diagnose": OF_MODELS["diagnose"],
    "few_shot_losses": lambda _, task: analysis.few_shot_losses(
        torch.zeros_like, task, None, SMALL
    ),
    "fit_polynomial": lambda _, task: analysis.fit_polynomial(task, 0, evaluation=TUNING),
    "in_context_loss": OF_MODELS["in_context_loss"],
    "learn_inverse": lambda _, task: analysis.learn_inverse(
        task, neumann_inverse(1), iterations=1, evaluation=TUNING
    ),
    "line_search_step_size": lambda _, task: analysis.line_search_step_size(
        task, evaluation=TUNING
    ),
    "linearize": OF_MODELS["linearize"],
    "probe_layers": probe,
    "token_scores": lambda model, task: analysis.token_scores({"mine": model}, task, SMALL),
    "tune": lambda _, task: analysis.tune(
        lambda value: lambda batch: value * batch.targets,
        task,
        bounds=(0, 2),
        tolerance=0.1,
        evaluation=TUNING,
    ),
    "tune_prompt": lambda model, task: analysis.tune_prompt(model, task, steps=1, batch_size=1),
    "tune_ridge": lambda _, task: analysis.tune_ridge(task, evaluation=TUNING),
    "tuned_baselines": lambda _, task: analysis.tuned_baselines(task),
}


@pytest.mark.parametrize("name", sorted(OF_MODELS.keys() - OTHERS))
@pytest.mark.parametrize("kind", ["run", "path", "text"])
def test_a_run_or_its_path_stands_for_its_model(
    name: str, kind: str, run: Run, task: LinearSystem
) -> None:
    given = {"run": run, "path": run.path, "text": str(run.path)}[kind]
    OF_MODELS[name](given, task)


@pytest.mark.parametrize("name", sorted(OF_MODELS))
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (recipes.get("lsa-1"), "is a RunConfig: must be a model, a Run or its path; train makes"),
        (ModelConfig(), "is a ModelConfig: must be a model, a Run or its path"),
        (None, "is None: must be a model, a Run or its path"),
        (3, "is an int: must be a model, a Run or its path"),
    ],
)
def test_what_is_no_model_gets_its_sentence(
    name: str, given: Any, sentence: str, task: LinearSystem
) -> None:
    with pytest.raises(TypeError, match=r"^(model|predictors|predictors\['mine'\]) " + sentence):
        OF_MODELS[name](given, task)


@pytest.mark.parametrize("name", sorted(OF_TASKS.keys() - OTHERS))
def test_settings_stand_for_their_task(name: str, run: Run) -> None:
    OF_TASKS[name](run.model, run.config.task)


@pytest.mark.parametrize("name", sorted(OF_TASKS))
def test_what_is_no_task_gets_its_sentence(name: str, run: Run) -> None:
    wanted = "must be a task with .sample, or its settings"
    cases = [
        (run, f"task is a Run: {wanted}, such as its .config.task"),
        (run.config, f"task is a RunConfig: {wanted}, such as its .task"),
        ("linear", f"task is 'linear': {wanted}"),
        (LinearSystem, f"task is the class LinearSystem: {wanted}"),
        (run.model, f"task is a SequenceModel: {wanted}"),
    ]
    for given, sentence in cases:
        with pytest.raises(TypeError, match=f"^{re.escape(sentence)}"):
            OF_TASKS[name](run.model, given)


@pytest.mark.parametrize("name", sorted(FEW_SHOT))
def test_few_shot_analyses_want_few_shot_tasks(name: str, run: Run) -> None:
    with pytest.raises(TypeError, match="^task is a LinearSystem: must be a FewShot"):
        OF_TASKS[name](run.model, run.config.task)


def test_scores_on_tokens_want_tasks_on_tokens(run: Run) -> None:
    with pytest.raises(TypeError, match="^task is a LinearSystem: must be a task on tokens, or"):
        OF_TASKS["token_scores"](run.model, run.config.task)


def test_language_results_want_a_run_of_a_language_model(run: Run) -> None:
    for given in (run, run.path, run.model, run.config):
        with pytest.raises(TypeError, match="^run is a .*: must be a Run of a language model, or"):
            analysis.language_results(given)


def test_a_run_knows_its_task(run: Run, task: LinearSystem) -> None:
    loss = analysis.in_context_loss(run, task, SMALL)
    for given in (run, run.path):
        assert torch.equal(analysis.in_context_loss(given, None, SMALL).losses, loss.losses)
    by_name = analysis.in_context_loss({"mine": run.model}, task, SMALL)
    assert torch.equal(by_name["mine"].losses, loss.losses)
    with pytest.raises(TypeError, match="task is None: must be a task"):
        analysis.in_context_loss(run.model)
    with pytest.raises(TypeError, match="task is None: must be a task"):
        analysis.diagnose(run.model)


def test_diagnose_takes_a_run_or_its_path(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(task: LinearSystem, regression: None) -> None:
        assert task.config == run.config.task
        raise ValueError("stopped by the test")

    module = sys.modules["mesaopt.analysis.diagnosis.diagnose"]  # the function has this name, too
    monkeypatch.setattr(module, "regression_of", stop)
    for model, task in ((run, None), (RUN, None), (str(RUN), run.config.task)):
        with pytest.raises(ValueError, match="stopped by the test"):
            analysis.diagnose(model, task)


def test_tokens_are_a_tensor_or_a_batch(run: Run, task: LinearSystem) -> None:
    batch, names = task.sample(2, seed=0), ["blocks.0"]
    (from_batch,) = analysis.capture(run, batch, names).values()
    (from_tokens,) = analysis.capture(run, batch.tokens, names).values()
    assert torch.equal(from_batch, from_tokens)
    with pytest.raises(TypeError, match=r"^x is a LinearSystem: must be a tensor or a Batch; its"):
        analysis.capture(run, task, names)
    with pytest.raises(TypeError, match="^tokens is a list: must be a tensor or a Batch"):
        analysis.sensitivity(run, [1], name="blocks.0", position=2)
    with pytest.raises(TypeError, match="^tokens is a list: must be a tensor or a Batch"):
        analysis.attention_maps(run, [1], name="blocks.0.mixer")


@pytest.mark.parametrize("make", [SequenceModel, make_model])
def test_a_model_is_made_of_its_own_settings(make: Callable[[Any], Any], run: Run) -> None:
    cases = {
        "RunConfig: must be .*, such as its .model$": run.config,
        "Run: must be .*, such as its .config.model$": run,
        "LinearSystemConfig: must be .*Config$": run.config.task,
        r"'lsa-1': must be .*, such as recipes.get\('lsa-1'\).model": "lsa-1",
    }
    for sentence, given in cases.items():
        with pytest.raises(TypeError, match=f"^config is (a )?{sentence}"):
            make(given)


MODELS = {
    SequenceModel: ModelConfig,
    OneLayerModel: MergedAttentionConfig,
    LanguageModel: LanguageModelConfig,
    AutoEncoder: AutoEncoderConfig,
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("given", MODELS.values())
def test_each_model_takes_the_settings_of_its_own_kind_only(
    model: type[torch.nn.Module], given: type
) -> None:
    if MODELS[model] is given:
        assert sum(p.numel() for p in model(given()).parameters()) > 0
        return
    wanted = rf"^config is an? {given.__name__}: must be an? {MODELS[model].__name__}$"
    with pytest.raises(TypeError, match=wanted):
        model(given())


@pytest.mark.parametrize("make", [LinearSystem, make_task])
def test_a_task_is_made_of_its_own_settings(make: Callable[[Any], Any], run: Run) -> None:
    with pytest.raises(TypeError, match="^config is a RunConfig: must be .*, such as its .task$"):
        make(run.config)
    with pytest.raises(TypeError, match="^config is a Run: must be .*, such as its .config.task$"):
        make(run)


@pytest.mark.parametrize("name", recipes.TASKS)
def test_a_task_takes_settings_by_keyword_or_a_config(name: str) -> None:
    config = recipes.TASKS[name]
    task = type(make_task(config))
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    assert task(**settings).config == config
    name, larger = next(
        (name, settings[name] + 2) for name in ("length", "pairs", "longest") if name in settings
    )
    assert getattr(task(config, **{name: larger}).config, name) == larger
    assert task().config == type(config)()
    misspelt = f"{name}h"
    with pytest.raises(
        ValueError, match=f"^{misspelt}: is no setting of this task; did you mean '{name}'"
    ):
        task(**{misspelt: 7})
    with pytest.raises(ValueError, match=f"^{name}=0: must be"):
        task(**{name: 0})


def test_a_keyword_names_the_start_of_an_autoregressive_process() -> None:
    by_name, by_config = ARProcess(start="full_one"), ARProcess(ARProcessConfig(start="full_one"))
    assert by_name.config == by_config.config
    assert torch.equal(by_name.sample(2, seed=0).states, by_config.sample(2, seed=0).states)


def test_train_takes_the_name_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def stop(folder: RunFolder, *_: object, **__: object) -> None:
        done.append(folder.config.recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("mesaopt.training.loop.train_in", stop)
    with pytest.raises(KeyboardInterrupt):
        train("lsa-1", tmp_path / "run", device="cpu")
    assert done == ["lsa-1"]


@pytest.mark.parametrize(
    "call",
    [
        lambda given, out: train(given, out),
        lambda given, out: training.train_seeds([given], [out]),
        lambda given, _: training.step_cost(given, "cpu"),
        lambda given, _: training.seed_batches([given], "cpu"),
    ],
    ids=["train", "train_seeds", "step_cost", "seed_batches"],
)
def test_what_is_no_settings_of_a_run_gets_its_sentence(
    call: Callable[[Any, Path], Any], run: Run, tmp_path: Path
) -> None:
    wanted = "must be a RunConfig or the name of a recipe"
    cases = {
        f"ModelConfig: {wanted}, such as RunConfig.recipe='mine', model=": ModelConfig(),
        f"LinearSystemConfig: {wanted}, such as .*task=": LinearSystemConfig(),
        f"TrainConfig: {wanted}, such as .*train=": TrainConfig(),
        f"SequenceModel: {wanted}$": run.model,
        f"Run: {wanted}, such as its .config": run,
    }
    for sentence, given in cases.items():
        with pytest.raises(TypeError, match=rf"^config(s\[0\])? is a {sentence}"):
            call(given, tmp_path / "run")
    with pytest.raises(ValueError, match="recipe='lsa1': did you mean 'lsa-1'?"):
        call("lsa1", tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_path_is_wanted_where_a_run_is_loaded_or_written(run: Run) -> None:
    with pytest.raises(TypeError, match="^path is a Run: must be a path, such as its .path"):
        load_run(run)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^path is None: must be a path"):
        train("lsa-1", None)  # type: ignore[arg-type]


LAYERS = {
    "mesa": MesaLayer(width=6, num_heads=2, head_dim=3),
    "softmax": SoftmaxSelfAttention(width=6, num_heads=2, head_dim=3),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_a_step_reports_the_shape_that_it_was_given(name: str) -> None:
    layer = LAYERS[name]
    state = layer.init_state(3)
    for shape in ((3, 1, 6), (6,), (3, 7)):
        given = re.escape(f"x has shape {shape}: must be [batch, 6]")
        with pytest.raises(ValueError, match=f"^{given}"):
            layer.step(torch.zeros(shape), state)
    with pytest.raises(ValueError, match=r"must be \[batch, time, 6\]; step takes one token"):
        layer.extend(torch.zeros(3, 6))


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_a_layer_goes_on_from_its_own_kind_of_state(name: str) -> None:
    layer, x = LAYERS[name], torch.zeros(3, 5, 6)
    memory = layer.init_state(3).memory
    for given, words in ((memory, f"a {type(memory).__name__}"), ((), "a tuple")):
        for call, tokens in ((layer.extend, x), (layer.step, x[:, 0])):
            with pytest.raises(TypeError, match=f"^state is {words}: must be a LayerState$"):
                call(tokens, given)
    with pytest.raises(TypeError, match="^state is None: must be a LayerState$"):
        layer.step(x[:, 0], None)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        *(("x", layer) for layer in LAYERS.values()),
        *(("x", layer.extend) for layer in LAYERS.values()),
        *(("x", layer.head_inputs) for layer in LAYERS.values()),
        ("x", lambda x: LAYERS["mesa"].step(x[:, 0], LAYERS["mesa"].init_state(3))),
        ("tokens", SequenceModel(ModelConfig(token_dim=6, output_dim=6, head_dim=3))),
        ("tokens", SequenceModel(ModelConfig(token_dim=6, embed_dim=8, readout="linear"))),
        ("tokens", MergedLinearSelfAttention(6, 3, dtype=torch.float32)),
    ],
)
def test_numbers_of_another_type_than_the_weights_get_their_sentence(
    argument: str, call: Callable[[Any], Any]
) -> None:
    for dtype in (torch.float64, torch.bfloat16, torch.int64):
        sentence = f"{argument} has type {dtype}: must be torch.float32, as the weights"
        with pytest.raises(ValueError, match=f"^{sentence}"):
            call(torch.zeros(3, 5, 6, dtype=dtype))
    with pytest.raises((TypeError, IndexError), match="must be a tensor|indices"):
        call(np.zeros((3, 5, 6))) if argument == "tokens" else call([1])


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1), (4, 4), (2, 3, 3)])
@pytest.mark.parametrize(
    "call",
    [
        lambda phi: proposition_1(3, step_size=0.1, initial_map=phi),
        lambda phi: gradient_descent(torch.ones(2, 5, 3), step_size=0.1, initial_map=phi),
    ],
    ids=["proposition_1", "gradient_descent"],
)
def test_an_initial_map_of_another_shape_gets_its_sentence(
    call: Callable[[Any], Any], shape: tuple[int, ...]
) -> None:
    sentence = re.escape(f"initial_map has shape {shape}: must be (3, 3)")
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        call(torch.ones(shape))


def test_a_batch_is_not_its_tokens(run: Run, task: LinearSystem) -> None:
    with pytest.raises(
        TypeError, match="^tokens is a Batch: must be a tensor, such as its .tokens"
    ):
        run.model(task.sample(1, seed=0))


def test_autocast_brings_inputs_and_weights_to_one_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert LAYERS["softmax"](torch.zeros(3, 5, 6, dtype=torch.bfloat16)).shape == (3, 5, 6)


@pytest.mark.parametrize("command", ["evaluate", "diagnose"])
def test_a_folder_of_something_else_than_a_run_gets_its_sentence(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "holds results: must be the folder of one run; mesaopt.load": RESULTS,
        f"holds runs: must be the folder of one run, such as {FOLDER / ''}": FOLDER,
        "there is no such folder; the trained model of the recipe is zoo:lsa-1": "lsa-1",
    }
    for sentence, path in cases.items():
        assert exit_status(command, str(path)) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
    with pytest.raises(RunError, match=r"mesaopt.load\('lsa-1'\) gives"):
        load_run("zoo:lsa-1")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("train", "lsa-1", "--steps", "5"),
            "--steps: is a setting: write --set train.steps=VALUE",
        ),
        (("train", "lsa-1", "--num-heads=2"), "--num-heads: is a setting: write --set model.num"),
        (("train", "lsa-1", "--task.dim=2"), "--task.dim: is a setting: write --set task.dim="),
        (
            ("train", "lsa-1", "--oot", "x"),
            "--oot: is no option of mesaopt train; did you mean '--out'",
        ),
        (
            ("reproduce", "core", "--form", "x"),
            "--form: is no option of mesaopt reproduce; did you",
        ),
        (("list", "--steps"), "--steps: is no option of mesaopt list; allowed: --json"),
    ],
)
def test_an_unknown_option_is_not_one_of_another_command(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(*arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
