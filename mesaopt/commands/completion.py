"""The command `completion`: a script by which a shell completes what is typed behind `mesaopt`."""

from mesaopt import argument_lists, recipes, zoo
from mesaopt import arguments as args
from mesaopt.papers.index import read_index

_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
_SCRIPT = """\
# Completion for mesaopt, written by: mesaopt completion {shell}
{start}_mesaopt() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
  case "${{COMP_WORDS[1]}} $before $COMP_CWORD" in
    *" 1") words="{commands} --help --version" ;;
{values}
    *) case "${{COMP_WORDS[1]}} $word" in
{arguments}
      esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//:}}
complete -o default -F _mesaopt mesaopt
"""


def print_completion(command: args.Completion) -> int:
    """Print the script; where it knows no words, the shell completes names of files."""
    names = {
        "RECIPE": list(recipes.RECIPES),
        "RUN": [f"{zoo.PREFIX}{name}" for name in zoo.names()],
        "WHAT": [row["name"] for row in read_index()],
    }
    values, arguments = [], []
    for name, kind in argument_lists.commands().items():
        given = argument_lists.arguments_of(kind)
        options = " ".join([*(one.name for one in given if one.name), "--help"])
        arguments.append(f'        "{name} -"*) words="{options}" ;;')
        for one in given:
            words = " ".join(_words(one.values, names))
            if one.name and one.values:
                values.append(f'    "{name} {one.name} "*) words="{words}" ;;')
            elif words:
                arguments.append(f'        "{name} "*) words="{words}" ;;')
    script = _SCRIPT.format(
        shell=command.shell,
        start=_ZSH if command.shell == "zsh" else "",
        commands=" ".join(argument_lists.commands()),
        values="\n".join(values),
        arguments="\n".join(arguments),
    )
    print(script, end="")
    return 0


def _words(values: str, names: dict[str, list[str]]) -> list[str]:
    """List the words that an argument may be: names of one kind, or choices in small letters."""
    parts = values.removesuffix(" ...").split("|")
    known = [word for part in parts for word in names.get(part, [])]
    return known or [part for part in parts if part.islower() and part[0] != "."]
