from pathlib import Path

import pytest
from helpers import is_for_keyboards
from torch import Tensor, nn

from mesaopt.analysis import Diagnosis, diagnose
from mesaopt.arguments import Diagnose
from mesaopt.commands import diagnosis as commands
from mesaopt.config import LinearSystemConfig
from mesaopt.errors import ConfigError
from mesaopt.report import write_diagnosis
from mesaopt.report.diagnoses import page_of
from mesaopt.report.diagnosis import Section, sections
from mesaopt.report.page import write
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


def section(diagnosis: Diagnosis, title: str) -> Section:
    return next(part for part in sections(diagnosis) if part.title == title)


def test_short_sequences_have_a_page(short: Diagnosis, tmp_path: Path) -> None:
    probes = section(short, "Which variables do the layers contain?")
    assert "too short to look for the previous state" in probes.summary
    write_diagnosis(short, tmp_path / "page.html", name="short")
    html = (tmp_path / "page.html").read_text()
    assert "too short to look for the previous state" in html
    assert is_for_keyboards(html)


def test_diagnoses_of_several_models_have_a_page(short: Diagnosis, tmp_path: Path) -> None:
    write(page_of({"one": short, "two": short}, []), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert html.count(f"<td>{short.verdict.sentence}</td>") == 2
    assert is_for_keyboards(html)


def test_shifts_that_a_model_cannot_process_are_named(short: Diagnosis) -> None:
    shifts = section(short, "Does it hold under distribution shifts?")
    assert shifts.summary.endswith("the model cannot process such sequences: 1.5 times as long.")


def test_names_are_printed_as_they_are(
    short: Diagnosis, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.print_diagnosis(short, "run[bold][/red]")
    assert "Is there a mesa-optimizer in run[bold][/red]?" in capsys.readouterr().out


def test_a_folder_for_a_page_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; give a file"):
        commands.diagnose(Diagnose(tmp_path / "no run", sequences=1, out=tmp_path))


def test_a_layer_that_binds_is_named() -> None:
    class Binding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bind = nn.Identity()

        def forward(self, tokens: Tensor) -> Tensor:
            return self.bind(tokens_from_states(tokens, ("current", "previous")))[..., :2]

    task = LinearSystem(LinearSystemConfig(dim=2, length=6, token_slots=("current",)))
    diagnosis = diagnose(Binding(), task, names=["input", "bind"], num_sequences=256)
    probes = section(diagnosis, "Which variables do the layers contain?")
    assert "The previous state is bound to the newest token in bind" in probes.summary
