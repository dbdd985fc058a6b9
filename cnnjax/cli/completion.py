"""`cnnjax completion`: a script for a shell that completes commands, flags and fields of the config."""

import importlib

from cnnjax import config as config_lib
from cnnjax.cli.flags import FLAGS, command
from cnnjax.errors import by_name
from cnnjax.runs.config_files import examples

BASH = """_cnnjax() {{
  local word=${{COMP_LINE:0:COMP_POINT}}
  word=${{word##* }}
  case ${{COMP_WORDS[1]}} in
{cases}
    *) [ "$COMP_CWORD" = 1 ] && COMPREPLY=($(compgen -W '{commands}' -- "$word")) ;;
  esac
  # After = a word of its own begins in bash, but not in zsh.
  [[ $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${{COMPREPLY[@]#"${{word%"${{word##*=}}"}}"}}")
  [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
}}
complete -o default -F _cnnjax cnnjax"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
SHELLS = ("bash", "zsh", "fish")


@command("completion", words=1)
def completion(words: list[str]) -> None:
    """Prints the script that completes cnnjax in a shell: bash, zsh or fish."""
    shell = words[0] if words else "bash"
    by_name("shell", shell, dict.fromkeys(SHELLS))
    flags = flags_of_commands()
    if shell == "fish":
        print(fish(flags))
        return
    cases = [
        f"    {name}) COMPREPLY=($(compgen -W '{' '.join(own)}' -- \"$word\")) ;;"
        for name, own in flags.items()
    ]
    script = BASH.format(cases="\n".join(cases), commands=" ".join(flags))
    print(ZSH * (shell == "zsh") + script)


def flags_of_commands() -> dict[str, list[str]]:
    """By command, its flags, those with a value with '=', and the examples and fields of a config."""
    from cnnjax.cli.main import COMMANDS, SHARED

    found: dict[str, list[str]] = {}
    for name in COMMANDS:
        importlib.import_module(f"cnnjax.cli.{SHARED.get(name, name)}")
        own = [flag for known, flags in FLAGS.items() if known.split()[0] == name for flag in flags]
        names = ["", *examples()] if "--config=" in own else []
        fields = [f"--config={name}" for name in names]
        fields += [f"--config.{field}=" for field in config_lib.FIELDS if names]
        found[name] = list(dict.fromkeys([*own, *fields]))
    return found


def fish(flags: dict[str, list[str]]) -> str:
    """A line a command, and a line for the flags of each."""
    lines = [f"complete -c cnnjax -n __fish_use_subcommand -a '{' '.join(flags)}'"]
    for name, own in flags.items():
        lines.append(f"complete -c cnnjax -n '__fish_seen_subcommand_from {name}' -a '{' '.join(own)}'")
    return "\n".join(lines)
