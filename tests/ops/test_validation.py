"""Bad arguments: every operator refuses the same mistake with the same message."""

import pytest
import torch
from operator_rules import MESA, RULES, Rule, draw, every, pick

from mesaopt import ops
from mesaopt.ops import KeyValueState, LinearState

OPERATORS = RULES + MESA
LINEAR = tuple(rule for rule in RULES if rule.chunked)  # those with a LinearState


@every(OPERATORS)
def test_bad_input_is_refused(rule: Rule) -> None:
    inputs = pick(rule, draw(2, 5, 3, 4, 2))
    good = inputs["v"]
    cases = [
        ({"q": inputs["q"][0]}, r"q has shape \(5, 3, 4\): must be \[batch, time, head, key\]"),
        ({"k": inputs["k"][:, :4]}, r"k has shape \(2, 4, 3, 4\): must be \(2, 5, 3, 4\), as q"),
        ({"v": good[:1]}, r"v has shape \(1, 5, 3, 2\): must be \(2, 5, 3, value\)"),
        ({"v": good.float()}, r"v has type torch.float32: must be torch.float64, as q"),
        ({"k": inputs["k"].to("meta")}, r"k is on meta: must be on cpu, as q"),
        ({"initial_state": (good,)}, r"initial_state has type tuple: must be"),
    ]
    if rule.chunked:
        cases.append(({"chunk_size": 0}, "chunk_size=0: must be 1 or greater"))
        cases += [
            ({"chunk_size": wrong}, f"^chunk_size={wrong!r}: must be a whole number")
            for wrong in (2.0, 2.5, True, "2", None)
        ]
    for gate in rule.gates:
        shape = rf"{gate} has shape \(2, 5\): must be \(2, 5, 3\)"
        cases.append(({gate: inputs[gate][..., 0]}, shape))
        cases.append(({gate: inputs[gate].to("meta")}, f"{gate} is on meta: must be on cpu, as q"))
        kind = rf"^{gate} has type torch.complex128: must be a real type"
        cases.append(({gate: inputs[gate] + 0j}, kind))
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            rule.run(**inputs | change)


@every(OPERATORS)
def test_what_is_no_tensor_is_refused(rule: Rule) -> None:
    inputs = pick(rule, draw(2, 5, 3, 4, 2))
    token = {name: x[:, 0] for name, x in inputs.items()}
    for function, arguments in ((rule.run, inputs), (rule.step, token)):
        for name, x in arguments.items():
            for given, words in ((x.tolist(), "a list"), (x.numpy(), "a ndarray")):
                with pytest.raises(TypeError, match=f"^{name} is {words}: must be a tensor$"):
                    function(**arguments | {name: given})


@pytest.mark.parametrize("name", ["ridge", "beta", "log_decay"])
@pytest.mark.parametrize("on_failure", ["raise", "warn"])
def test_mesa_waits_for_a_device_to_look_at_ranges(
    name: str, on_failure: ops.OnFailure, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Numbers on a GPU are not looked at for nothing; a call that waits for it anyway looks at them, too.
    monkeypatch.setattr("mesaopt.ops.validation.readable", lambda x: False)
    inputs = draw(2, 5, 3, 4, 2)
    inputs |= {"ridge": torch.ones(3, dtype=torch.float64)}
    inputs[name] = torch.full_like(inputs[name], 2.0 if name == "beta" else 1.0)
    if name == "ridge":
        inputs[name] = -inputs[name]
    with pytest.raises(ValueError, match=f"^{name} has the value -?[12]: must be "):
        ops.mesa(**inputs, on_failure=on_failure)


@every(OPERATORS)
def test_gates_out_of_range_are_refused(rule: Rule) -> None:
    inputs = pick(rule, draw(2, 5, 3, 4, 2))
    token = {name: x[:, 0] for name, x in inputs.items()}
    bad = {
        "log_decay": [(0.25, "0.25: must be 0 or less"), (torch.nan, "nan: must be 0 or less")],
        "beta": [
            (1.5, "1.5: must be between 0 and 1"),
            (-0.5, "-0.5: must be between 0 and 1"),
            (torch.nan, "nan: must be between 0 and 1"),
        ],
    }
    for gate in rule.gates:
        for value, message in bad[gate]:
            for function, arguments in ((rule.run, inputs), (rule.step, token)):
                wrong = arguments[gate].clone()
                wrong[1, ..., 1] = value
                with pytest.raises(ValueError, match=f"{gate} has the value {message}"):
                    function(**arguments | {gate: wrong})


@every(OPERATORS)
def test_a_bad_token_is_refused(rule: Rule) -> None:
    token = {name: x[:, 0] for name, x in pick(rule, draw(2, 5, 3, 4, 2)).items()}
    cases = [
        ({"q": token["q"][0]}, r"q has shape \(3, 4\): must be \[batch, head, key\]"),
        ({"k": token["k"][:, :2]}, r"k has shape \(2, 2, 4\): must be \(2, 3, 4\), as q"),
        ({"v": token["v"][:1]}, r"v has shape \(1, 3, 2\): must be \(2, 3, value\)"),
        ({"v": token["v"].float()}, r"v has type torch.float32: must be torch.float64, as q"),
        ({"state": (token["v"],)}, r"^state has type tuple: must be"),
    ]
    cases += [({gate: token[gate][0]}, rf"{gate} has shape \(3,\): must be") for gate in rule.gates]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            rule.step(**token | change)


@every(LINEAR)
def test_a_state_that_does_not_fit_is_refused(rule: Rule) -> None:
    inputs = pick(rule, draw(2, 5, 3, 4, 2))
    token = {name: x[:, 0] for name, x in inputs.items()}
    cross = torch.zeros(2, 3, 2, 4)
    for function, arguments, name in (
        (rule.run, inputs, "initial_state"),
        (rule.step, token, "state"),
    ):
        with pytest.raises(
            ValueError, match=r"state.cross has shape \(2, 3, 4, 2\): must be \(2, 3"
        ):
            function(**arguments, **{name: LinearState(cross.mT.double())})
        with pytest.raises(
            ValueError, match=r"state.cross has type torch.float32: must be torch.fl"
        ):
            function(**arguments, **{name: LinearState(cross)})
        with pytest.raises(ValueError, match=r"state has type KeyValueState: must be LinearState"):
            function(**arguments, **{name: KeyValueState(inputs["k"], inputs["v"])})


@every(OPERATORS)
@pytest.mark.parametrize(("given", "words"), [(None, "None"), ([1.0], "a list")])
def test_a_state_holds_tensors(rule: Rule, given: object, words: str) -> None:
    inputs = pick(rule, draw(2, 5, 3, 4, 2))
    token = {name: x[:, 0] for name, x in inputs.items()}
    good = rule.run(**inputs).state
    for field in good._fields:
        if (field, given) == ("lengths", None):  # a cache that is not packed
            continue
        state = good._replace(**{field: given})
        message = f"state.{field} is {words}: must be a tensor$"
        with pytest.raises(TypeError, match=f"^initial_{message}"):
            rule.run(**inputs, initial_state=state)
        with pytest.raises(TypeError, match=f"^{message}"):
            rule.step(**token, state=state)


def test_a_cache_that_does_not_fit_is_refused() -> None:
    q, k, v = (draw(2, 5, 3, 4, 2)[name] for name in ("q", "k", "v"))
    for state, message in (
        (
            KeyValueState(k[:1], v[:1]),
            r"state.keys has shape \(1, 5, 3, 4\): must be \(2, 5, 3, 4\)",
        ),
        (KeyValueState(k[0, 0, 0], v), r"state.keys has shape \(4,\): must be \(2, 0, 3, 4\)"),
        (
            KeyValueState(k, v[:, 1:]),
            r"state.values has shape \(2, 4, 3, 2\): must be \(2, 5, 3, 2",
        ),
        *(
            (KeyValueState(k[:1], v[:1], lengths), "state.lengths of .*: must be 2 of torch.int64")
            for lengths in (torch.tensor([2.0, 3.0]), torch.tensor([5]), torch.tensor([-1, 6]))
        ),
        (
            KeyValueState(k[:1], v[:1], torch.tensor([2, 4])),
            r"state.keys has shape \(1, 5, 3, 4\): must be \(1, 6, 3, 4\)",
        ),
        (
            KeyValueState(k, v, torch.tensor([2, 3])),
            r"state.keys has shape \(2, 5, 3, 4\): must be \(1, 5, 3, 4\)",
        ),
        (LinearState(k), "state has type LinearState: must be KeyValueState"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.softmax_attention(q, k, v, initial_state=state)
        with pytest.raises(ValueError, match=message):
            ops.softmax_attention_step(q[:, 0], k[:, 0], v[:, 0], state)
    for call in (ops.softmax_attention, ops.softmax_attention_step):
        x = q if call is ops.softmax_attention else q[:, 0]
        for wrong in (-1.0, 0, torch.nan, torch.inf, True, "1"):
            with pytest.raises(ValueError, match=f"^scale={wrong!r}: must be a finite number grea"):
                call(x, x, x, scale=wrong)
        for wrong in (0, 2.0, True, "1"):
            with pytest.raises(ValueError, match=f"^window={wrong!r}: must be (1|a whole number)"):
                call(x, x, x, window=wrong)
