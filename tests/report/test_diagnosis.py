from pathlib import Path

import pytest
from torch import Tensor, nn

from mesaopt import commands
from mesaopt.analysis import Diagnosis, diagnose
from mesaopt.arguments import Diagnose
from mesaopt.config import LinearSystemConfig
from mesaopt.errors import ConfigError
from mesaopt.report import write_diagnosis
from mesaopt.report.diagnosis import sections
from mesaopt.tasks import LinearSystem, tokens_from_states

LENGTH = 4
TASK = LinearSystem(LinearSystemConfig(dim=2, length=LENGTH, token_slots=("current",)))


class Copying(nn.Module):
    """Copies what came before, on sequences of four at most."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > LENGTH:
            raise IndexError("index out of range")
        return self.copy(tokens_from_states(tokens, ("current", "previous")))[..., 2:]


@pytest.fixture(scope="module")
def short() -> Diagnosis:
    return diagnose(Copying(), TASK, names=["input", "copy"], num_sequences=256)


def test_short_sequences_have_a_page(short: Diagnosis, tmp_path: Path) -> None:
    inside = next(part for part in sections(short) if part.title == "What is inside?")
    assert "too short to look for the previous state" in inside.says
    write_diagnosis(short, tmp_path / "page.html", name="short")
    assert "too short to look for the previous state" in (tmp_path / "page.html").read_text()


def test_laws_that_a_model_cannot_take_are_named(short: Diagnosis) -> None:
    carries = next(part for part in sections(short) if part.title == "Does it carry over?")
    assert carries.says.endswith("the model cannot take such sequences: half as long again.")


def test_names_are_printed_as_they_are(
    short: Diagnosis, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.print_diagnosis(short, "run[bold][/red]")
    assert "Is there a mesa-optimizer in run[bold][/red]?" in capsys.readouterr().out


def test_a_folder_for_a_page_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; give a file"):
        commands.diagnose(Diagnose(tmp_path / "no run", sequences=1, out=tmp_path))


def test_what_is_bound_is_said_to_be() -> None:
    class Binding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bind = nn.Identity()

        def forward(self, tokens: Tensor) -> Tensor:
            return self.bind(tokens_from_states(tokens, ("current", "previous")))[..., :2]

    task = LinearSystem(LinearSystemConfig(dim=2, length=6, token_slots=("current",)))
    found = diagnose(Binding(), task, names=["input", "bind"], num_sequences=256)
    inside = next(part for part in sections(found) if part.title == "What is inside?")
    assert "The previous state is bound to the newest token in bind" in inside.says
