"""Holds docs/reference/cli.md to the code: every command, argument, option and exit code."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from jobclient import commands
from jobclient.cli import ExitCode

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"

# Said once for all commands that have them, at the head of the page.
COMMON = ("--url", "--key", "--stack", "--region", "--profile", "--json")


def all_commands(command=None, name="jobctl") -> Iterator[tuple[str, object]]:
    command = command or typer.main.get_command(commands.app)
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child_name, child in children.items():
        yield from all_commands(child, f"{name} {child_name}")


COMMANDS = dict(all_commands())


def documentation(command) -> str:
    """What the page has to say of a command's arguments and options, line by line."""
    lines, common = [], []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            lines.append(f"- `{parameter.metavar}`: {parameter.help}")
        elif parameter.opts[-1] in COMMON:
            common.append(parameter.opts[-1])
        elif "--help" not in parameter.opts:
            names = ", ".join(sorted(f"`{name}`" for name in parameter.opts))
            if not parameter.is_flag:
                names = names[:-1] + f" {parameter.metavar}`"
            default = f" Default: `{parameter.default}`." if _has_default(parameter) else ""
            lines.append(f"- {names}: {parameter.help}{default}")
    lines.sort(key=lambda line: line.startswith("- `-"))
    if common:
        lines.append(f"- and {', '.join(f'`{name}`' for name in sorted(common))}")
    return "\n".join(lines)


def _has_default(parameter) -> bool:
    return not parameter.is_flag and parameter.default not in (None, [])


def sections() -> dict[str, str]:
    found = re.split(r"^#+ `(jobctl [^`]+)`$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_the_page_has_the_commands_that_there_are():
    assert sorted(sections()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_the_arguments_and_options_that_there_are(name):
    section = sections()[name]
    expected = documentation(COMMANDS[name])

    assert expected in section, f"the section of `{name}` has to say:\n{expected}"
    said = {line for line in section.splitlines() if line.startswith("- ")}
    assert said == set(expected.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_argument_and_option_has_a_help_text(name):
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        assert parameter.help, parameter.name


def test_the_common_options_and_their_variables_are_on_the_page():
    head = PAGE.read_text(encoding="utf-8").partition("\n### ")[0]
    variables: set[str] = set()
    for command in COMMANDS.values():
        for parameter in command.params:
            found = parameter.envvar or []
            variables.update([found] if isinstance(found, str) else found)

    for name in (*COMMON, *variables):
        assert f"`{name}`" in head


def test_the_exit_codes_are_those_of_the_code():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert [int(code) for code, _ in rows] == list(ExitCode)
