import dataclasses
import json
import math
import types
import typing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesaopt import recipes
from mesaopt.config import (
    ARProcessConfig,
    FewShotConfig,
    LinearSystemConfig,
    MADConfig,
    MergedAttentionConfig,
    ModelConfig,
    NonlinearSystemConfig,
    PartiallyObservedConfig,
    RunConfig,
    TrainConfig,
    differences,
    from_dict,
    override,
    stacked,
    to_dict,
)
from mesaopt.errors import ConfigError

positive = st.integers(min_value=1, max_value=1000)


@given(dim=positive, length=positive, seed=st.integers(0, 2**40), steps=positive)
def test_every_configuration_survives_json(dim: int, length: int, seed: int, steps: int) -> None:
    config = RunConfig(
        recipe="any",
        seed=seed,
        task=LinearSystemConfig(dim=dim, length=length, start="normal"),
        model=ModelConfig(
            mixers=("mesa", "linear_attention"),
            token_dim=4 * dim,
            output_dim=dim,
            activation_clip=None,
        ),
        train=TrainConfig(steps=steps, schedule="warmup_cosine"),
    )
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    config = recipes.get(name, seed=7)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert config.recipe == name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sede": 1}, "unknown key 'sede'; did you mean 'seed'?"),
        ({"seed": "1"}, "config.seed='1': must be a whole number"),
        ({"seed": True}, "config.seed=True: must be a whole number"),
        ({"task": {"dimm": 3}}, "config.task: unknown key 'dimm'; did you mean 'dim'?"),
        ({"task": {"token_slots": ["curent"]}}, "'curent': did you mean 'current'?"),
        ({"task": {"token_slots": [1]}}, "1: allowed: zero, current, previous, or 2, 3, ..."),
        ({"task": {"token_slots": [True]}}, "True: allowed: zero, current, previous, or 2, 3, ..."),
        ({"task": {"token_slots": [2.0]}}, "2.0: allowed: zero, current, previous, or 2, 3, ..."),
        ({"task": {"transition": "orthogonl"}}, "did you mean 'orthogonal'?"),
        ({"task": {"kind": "partialy_observed"}}, "did you mean 'partially_observed'?"),
        ({"task": {"kind": "few_shot", "layout": "triple"}}, "did you mean 'triples'?"),
        ({"task": {"kind": "few_shot", "token_slots": []}}, "unknown key 'token_slots'"),
        ({"task": {"kind": "nonlinear_system", "normalisation": "l3"}}, "allowed: l2, none"),
        ({"task": []}, "config.task: []: must be an object"),
        ({"model": {"mixers": ["softmax"]}}, "'softmax': allowed: linear_attention, softmax_"),
        ({"model": {"mixers": ["softmax_atention"]}}, "did you mean 'softmax_attention'?"),
        ({"model": {"positions": "all"}}, "positions='all': allowed: none, first_layer"),
        ({"model": {"unit_queries_keys": "first"}}, "did you mean 'after_first'?"),
        ({"model": {"unit_queries_values": "first"}}, "did you mean 'after_first'?"),
        ({"model": {"mlp_dim": 1.5}}, "config.model.mlp_dim=1.5: must be a whole number"),
        ({"model": {"mixers": []}}, "mixers=(): must be at least one mixer"),
        (
            {"task": {"kind": "ar_proces"}},
            "config.task.kind='ar_proces': did you mean 'ar_process'?",
        ),
        ({"task": {"kind": 3}}, "config.task.kind=3: allowed: linear_system, ar_process"),
        (
            {"task": {"kind": "ar_process", "noise_std": 0.1}},
            "config.task: unknown key 'noise_std'",
        ),
        ({"task": {"kind": "ar_process", "start": "spars"}}, "did you mean 'sparse'?"),
        ({"task": {"kind": "ar_process", "length": 2}}, "length=2: must be 3 or greater"),
        ({"model": {"kind": "merged_attention", "num_heads": 2}}, "unknown key 'num_heads'"),
        (
            {"model": {"kind": "merged_attention", "blocks": "none"}},
            "blocks='none': allowed: all, core",
        ),
        ({"train": {"schedule": "constnt"}}, "did you mean 'constant'?"),
        ({"train": {"steps": 1.5}}, "config.train.steps=1.5: must be a whole number"),
    ],
)
def test_reading_is_strict_and_says_what_is_right(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict(RunConfig, {"recipe": "any"} | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="key 'recipe' is missing"):
        from_dict(RunConfig, {})


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearSystemConfig(dim=0),
        lambda: LinearSystemConfig(length=-1),
        lambda: LinearSystemConfig(noise_std=-0.1),
        lambda: LinearSystemConfig(token_slots=()),
        lambda: LinearSystemConfig(state_clip=0.0),
        lambda: LinearSystemConfig(teacher_seed=-1),
        lambda: PartiallyObservedConfig(dim=0),
        lambda: PartiallyObservedConfig(hidden_dim=0),
        lambda: PartiallyObservedConfig(length=0),
        lambda: PartiallyObservedConfig(noise_std=-0.1),
        lambda: PartiallyObservedConfig(observation_noise_std=-0.1),
        lambda: PartiallyObservedConfig(observation_std=0.0),
        lambda: PartiallyObservedConfig(state_clip=0.0),
        lambda: PartiallyObservedConfig(token_slots=()),
        lambda: NonlinearSystemConfig(dim=0),
        lambda: NonlinearSystemConfig(length=0),
        lambda: NonlinearSystemConfig(hidden_dim=0),
        lambda: NonlinearSystemConfig(teacher_std=0.0),
        lambda: NonlinearSystemConfig(teacher_seed=-1),
        lambda: NonlinearSystemConfig(noise_std=-0.1),
        lambda: NonlinearSystemConfig(token_slots=()),
        lambda: FewShotConfig(dim=0),
        lambda: FewShotConfig(length=0),
        lambda: FewShotConfig(noise_std=-0.1),
        lambda: FewShotConfig(prefix_length=-1),
        lambda: FewShotConfig(prefix_length=224),
        lambda: stacked(0),
        lambda: stacked(3, num_slots=2),
        lambda: ARProcessConfig(dim=0),
        lambda: ARProcessConfig(length=2),
        lambda: ARProcessConfig(start_scale=0.0),
        lambda: ARProcessConfig(token_slots=()),
        lambda: MergedAttentionConfig(dim=0),
        lambda: MergedAttentionConfig(initial_std=0.0),
        lambda: MergedAttentionConfig(token_slots=("current", "current")),
        lambda: ModelConfig(num_heads=0),
        lambda: ModelConfig(head_dim=-20),
        lambda: ModelConfig(activation_clip=0.0),
        lambda: ModelConfig(mlp_dim=0),
        lambda: ModelConfig(token_dim=41, positions="first_layer"),
        lambda: ModelConfig(token_dim=5, output_dim=6),
        lambda: ModelConfig(token_dim=40, num_heads=3, head_dim=None),
        lambda: TrainConfig(steps=0),
        lambda: TrainConfig(batch_size=-3),
        lambda: TrainConfig(learning_rate=0.0),
        lambda: TrainConfig(weight_decay=-1.0),
        lambda: TrainConfig(gradient_clip=0.0),
        lambda: TrainConfig(schedule="warmup_cosine", warmup_steps=10, decay_steps=10),
        lambda: RunConfig(recipe="any", seed=-1),
        lambda: RunConfig(recipe="any", task=LinearSystemConfig(dim=3)),
        lambda: RunConfig(recipe="any", task=ARProcessConfig(dim=3), model=MergedAttentionConfig()),
        lambda: RunConfig(
            recipe="any",
            task=ARProcessConfig(token_slots=("zero", "current", "previous")),
            model=MergedAttentionConfig(),
        ),
        lambda: RunConfig(recipe="any", model=MergedAttentionConfig()),
        lambda: RunConfig(
            recipe="any", task=ARProcessConfig(), model=ModelConfig(token_dim=10, output_dim=5)
        ),
    ],
)
def test_values_out_of_range_are_refused_with_the_field_the_value_and_the_range(make) -> None:
    with pytest.raises(ConfigError, match=r"\w+=.*: must be "):
        make()


@given(count=st.integers(1, 20), zeros=st.integers(0, 5))
def test_stacked_slots_are_newest_first_with_zeros_behind(count: int, zeros: int) -> None:
    slots = stacked(count, num_slots=count + zeros)
    delays = [{"current": 0, "previous": 1}.get(slot, slot) for slot in slots[:count]]
    assert delays == list(range(count))
    assert slots[count:] == ("zero",) * zeros
    config = PartiallyObservedConfig(token_slots=slots)
    assert config.token_dim == 5 * (count + zeros)
    assert from_dict(PartiallyObservedConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_heads_that_divide_give_the_head_dim() -> None:
    assert ModelConfig(token_dim=40, num_heads=4, head_dim=None).width == 40


def test_overrides_reach_nested_settings() -> None:
    config = recipes.get("lsa-1")
    changed = override(
        config, ["train.steps=5", "model.mixers=['mesa']", "seed=3", "task.start=normal"]
    )
    assert (changed.train.steps, changed.seed, changed.task.start) == (5, 3, "normal")
    assert changed.model.mixers == ("mesa",)
    assert override(config, []) == config


def test_a_part_is_replaced_though_it_has_a_setting_of_its_own_name() -> None:
    base, task = recipes.get("lm-mesanet"), MADConfig()
    config = replace(base, task=task, model=replace(base.model, vocabulary=task.dim))
    changed = override(config, ["task={'kind': 'mad', 'task': 'fuzzy_recall'}"])
    assert changed.task == MADConfig(task="fuzzy_recall")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.steps", "must look like"),
        ("trian.steps=5", "did you mean 'train'"),
        ("train.step=5", "did you mean 'steps'"),
        ("train.steps=many", "must be a whole number"),
    ],
)
def test_wrong_overrides_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(recipes.get("lsa-1"), [text])


@pytest.mark.parametrize("order", [1, -1])
def test_a_section_and_a_part_of_it_are_not_given_at_once(order: int) -> None:
    texts = ["train.learning_rate=0.1", "train={'steps': 5}"][::order]
    with pytest.raises(ConfigError, match="train.learning_rate, which is a part of it$"):
        override(recipes.get("lsa-1"), texts)


def test_differences_name_the_nested_setting() -> None:
    ours = recipes.get("lsa-1")
    theirs = replace(ours, seed=1, train=replace(ours.train, steps=9))
    assert differences(ours, theirs) == ["seed: 0, not 1", "train.steps: 3500, not 9"]
    assert differences(ours, ours) == []


def test_the_kind_is_stored_and_says_what_to_read() -> None:
    config = recipes.get("ar-sparse")
    data = json.loads(json.dumps(to_dict(config)))
    assert (data["task"]["kind"], data["model"]["kind"]) == ("ar_process", "merged_attention")
    assert from_dict(RunConfig, data) == config


def test_a_run_folder_of_before_there_were_kinds_and_choices_still_loads() -> None:
    config = recipes.get("mesa-1", seed=4)
    data = json.loads(json.dumps(to_dict(config)))
    for part in ("task", "model"):
        del data[part]["kind"]
    for name in ("optimizer", "data", "positions"):
        del data["train"][name]
    for name in ("positions", "unit_queries_keys", "unit_queries_values", "mlp_dim"):
        del data["model"][name]
    assert from_dict(RunConfig, data) == config


def test_another_kind_begins_with_its_own_defaults_in_any_order() -> None:
    changes = ["task.dim=3", "task.kind=ar_process", "model.kind=merged_attention", "model.dim=3"]
    for order in (changes, changes[::-1]):
        changed = override(recipes.get("lsa-1"), order)
        assert changed.task == ARProcessConfig(dim=3)
        assert changed.model == MergedAttentionConfig(dim=3)
    same = override(recipes.get("ar-sparse"), ["task.kind=ar_process"])
    assert same == recipes.get("ar-sparse"), "the kind it has changes nothing"
    with pytest.raises(ConfigError, match="task.kind='ar': did you mean|task.kind='ar': allowed"):
        override(recipes.get("lsa-1"), ["task.kind=ar"])


def test_differences_of_two_kinds_are_the_kinds() -> None:
    ours, theirs = recipes.get("ar-gaussian"), recipes.get("lsa-1")
    lines = differences(ours, theirs)
    assert "task.kind: 'ar_process', not 'linear_system'" in lines
    assert "model.kind: 'merged_attention', not 'sequence'" in lines
    assert not any(line.startswith("task.dim") for line in lines)


def test_real_layers_do_not_fit_complex_states() -> None:
    with pytest.raises(ConfigError, match="model.numbers='real': must be 'complex', the task's"):
        RunConfig(
            recipe="any", task=ARProcessConfig(), model=ModelConfig(token_dim=10, output_dim=5)
        )


def test_the_gradient_clip_can_be_off() -> None:
    assert override(recipes.get("lsa-1"), ["train.gradient_clip=null"]).train.gradient_clip is None


CONFIGS = (
    LinearSystemConfig(),
    ARProcessConfig(),
    PartiallyObservedConfig(),
    NonlinearSystemConfig(),
    FewShotConfig(),
    ModelConfig(mlp_dim=4, embed_dim=40, forget_cap=0.5, mixers=("gated_delta_rule",)),
    MergedAttentionConfig(),
    TrainConfig(),
    RunConfig(recipe="any"),
)
WRONG = {
    int: (1.5, 1.0, math.nan, math.inf, True, "1", None, [1], 10**40),
    float: (math.nan, math.inf, -math.inf, True, "1", None, [1.0], 10**400),
    str: (1, None, True, ["a"], b"a"),
    tuple: ("current", ["current"], None, 3),
}


def kind_of(hint: object) -> object:
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return typing.get_origin(choices[0]) or choices[0]


FIELDS = [
    (config, field.name, kind_of(typing.get_type_hints(type(config))[field.name]))
    for config in CONFIGS
    for field in dataclasses.fields(config)
]


@pytest.mark.parametrize(
    ("config", "name", "kind"), FIELDS, ids=[f"{type(c).__name__}-{n}" for c, n, _ in FIELDS]
)
def test_every_field_refuses_what_is_not_of_its_type_or_not_finite(
    config: object, name: str, kind: type
) -> None:
    optional = getattr(config, name) is None or "None" in str(
        typing.get_type_hints(type(config))[name]
    )
    for value in WRONG.get(kind, (1.5, None, "nothing of the sort", math.inf)):
        if value is None and optional:
            continue
        with pytest.raises(ConfigError, match=f"{name}=") as error:
            replace(config, **{name: value})
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "task.noise_std=Infinity",
        "task.noise_std=NaN",
        "train.learning_rate=1e999",
        "seed=" + "9" * 99,
    ]
    + ["seed=" + "9" * 9999, "model.activation_clip=Infinity", "train.steps=" + "[" * 9999],
)
def test_no_setting_may_be_infinite_or_absurd(text: str) -> None:
    with pytest.raises(ConfigError, match=text.partition("=")[0].rpartition(".")[2]) as error:
        override(recipes.get("lsa-1"), [text])
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "a/b",
        "/etc/x",
        "",
        ".",
        "..",
        ".x",
        "a\nb",
        "a\0b",
        "\x1b[31m",
        "x" * 201,
        "a\\b",
    ],
)
def test_a_recipe_is_named_by_a_plain_name(name: str) -> None:
    with pytest.raises(ConfigError, match="recipe="):
        RunConfig(recipe=name)


@pytest.mark.parametrize("name", ["mine", "my recipe", "naïve-1", "lsa-1.2_b"])
def test_other_recipe_names_are_free(name: str) -> None:
    assert RunConfig(recipe=name).recipe == name
