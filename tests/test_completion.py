"""The command `completion`: the script completes what a shell asks for."""

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import exit_status as run

from mesaopt import zoo
from mesaopt.argument_lists import arguments_of, commands
from mesaopt.recipes import RECIPES

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Path:
    assert run("completion", "bash") == 0
    path = tmp_path / "completion.bash"
    path.write_text(capsys.readouterr().out)
    return path


def completed(script: Path, *words: str) -> list[str]:
    """Ask bash what the last word may become."""
    code = (
        f'. {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mesaopt; echo "${{COMPREPLY[@]}}"'
    )
    command = ["bash", "-c", code, "bash", "mesaopt", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@needs_bash
def test_commands_options_recipes_and_models_are_completed(script: Path) -> None:
    assert completed(script, "") == [*commands(), "--help", "--version"]
    assert completed(script, "train", "") == list(RECIPES)
    assert completed(script, "bench", "train", "--recipe", "longh") == ["longhorn-1"]
    models = [f"zoo:{name}" for name in zoo.names()]
    for words in (["evaluate", "zoo:"], ["compare", "zoo:tf-3", "--to", "zoo:"]):
        assert completed(script, *words) == models
    assert "emergence2024/fig1" in completed(script, "reproduce", "emergence2024/")
    assert completed(script, "reproduce", "core", "--scale", "s") == ["smoke", "small"]
    assert completed(script, "train", "lsa-1", "--out", "x") == [], "the shell completes files"


@needs_bash
@pytest.mark.parametrize("command", commands())
def test_every_option_is_completed(command: str, script: Path) -> None:
    options = [one.name for one in arguments_of(commands()[command]) if one.name]
    assert completed(script, command, "--") == [*options, "--help"]


def test_zsh_loads_what_it_needs_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", "zsh") == 0
    second = capsys.readouterr().out.splitlines()[1]
    assert second.startswith("autoload -U +X compinit bashcompinit")
