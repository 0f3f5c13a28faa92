"""The command line: what it says. That it serves is tested over sockets."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from teesign import __version__
from teesign_asgi.cli import teesign
from teesign_asgi.settings import VARIABLES, Variable

CANARY = "kanarienvogel"
NOTHING_SET: dict[str, str | None] = {variable.name: None for variable in VARIABLES.values()}


def run(*arguments: str, **environment: str) -> Result:
    """Run a command that ends by itself, with these variables and no others."""
    return CliRunner(env={**NOTHING_SET, **environment}).invoke(teesign, arguments)


@pytest.fixture(scope="module")
def serve_help() -> str:
    """What `teesign serve --help` says, on one line."""
    return " ".join(run("serve", "--help", COLUMNS="200").output.split())


@pytest.mark.parametrize("variable", VARIABLES.values(), ids=lambda variable: variable.name)
def test_each_variable_has_a_flag(serve_help: str, variable: Variable) -> None:
    """With what it is for, and the variable's name."""
    flag = "--" + variable.name.lower().replace("_", "-")
    assert re.search(rf"{flag} VALUE {re.escape(variable.help)}[^\[]*\[{variable.name}\]", serve_help)


def test_flags_of_secrets_come_with_a_warning(serve_help: str) -> None:
    """Other users of the machine can read command lines."""
    assert serve_help.count("Shows in process listings") == sum(variable.secret for variable in VARIABLES.values()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["serve", "-h"], ["demo", "-h"]])
def test_every_command_explains_itself(arguments: list[str]) -> None:
    """With both of the usual flags."""
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


def test_the_version_is_shown() -> None:
    """That of the package."""
    assert run("--version").output == f"teesign, version {__version__}\n"


def test_everything_wrong_with_the_configuration_is_said_at_once() -> None:
    """As a usage error, before anything is opened; and no value is shown."""
    result = run("serve", "--listen-port", CANARY, TOKEN=f"{CANARY} {CANARY}", DEV=CANARY)
    assert result.exit_code == 2
    for name in ("MODEL_NAME", "TOKEN", "DEV", "LISTEN_PORT"):
        assert f"  - {name} " in result.output
    assert CANARY not in result.output


def test_a_flag_wins_over_its_variable() -> None:
    """What is typed last is meant."""
    good = {"MODEL_NAME": "m", "TOKEN": "t"}
    result = run("serve", "--listen-port", "0", "--log-level", "loud", LISTEN_PORT="1", LOG_LEVEL="info", **good)
    assert "LISTEN_PORT is less than 1" in result.output
    assert "LOG_LEVEL is none of" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--nonsense"],
        ["nonsense"],
        ["serve", "--drain-timeout"],
        ["demo", "--port", "x"],
        ["demo", "--port", "-1"],
        ["demo", "--port", "65536"],
    ],
)
def test_wrong_arguments_are_usage_errors(arguments: list[str]) -> None:
    """With the usual exit code."""
    assert run(*arguments).exit_code == 2


BLOCKING = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
sys.argv = ["teesign", *{arguments!r}]
from teesign_asgi.__main__ import main
main()
"""


def run_without(names: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that does not find some modules."""
    program = BLOCKING.format(names=names, arguments=arguments)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("granian", ("serve", "--listen-port", "1", "--unknown")),
        ("anyio", ("serve", "--help")),
        ("granian", ("demo", "--once")),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(package: str, arguments: tuple[str, ...]) -> None:
    """The library and the app do without those of the command line."""
    result = run_without((package,), *arguments)
    assert result.returncode == 2
    message = f"This needs the package {package}. Install it: pip install 'teesign[server]'\n"
    assert result.stderr == f"teesign {arguments[0]}: {message}"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("https://example.org",), "client"),
        (("--help",), "client"),
        (("--offline", "bundle.json"), "verify"),
        (("--json", "--offline=bundle.json"), "verify"),
    ],
)
def test_who_verifies_is_told_all_that_is_missing_at_once(arguments: tuple[str, ...], extra: str) -> None:
    """A server takes more than a file; whoever has installed what was asked for needs nothing else after that."""
    result = run_without(("dcap_qvl", "httpx"), "verify", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    message = f"This needs the package dcap_qvl. Install it: pip install 'teesign[{extra}]'\n"
    assert result.stderr == f"teesign verify: {message}"


def test_the_command_lines_own_package_may_be_missing() -> None:
    """Then there are no commands yet, and what to install depends on which one is wanted."""
    result = run_without(("click",), "--help")
    assert result.returncode == 2
    assert result.stderr.startswith("teesign: This needs the package click. Install it: pip install 'teesign[server]'")
    assert result.stdout == ""


def test_help_is_given_for_commands_that_cannot_run() -> None:
    """They are listed with what they need."""
    result = run_without(("granian",), "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"serve +This needs the package granian\.", result.stdout)


def test_a_missing_module_of_our_own_is_no_missing_package() -> None:
    """Installing something would not help."""
    result = run_without(("teesign_asgi.cli.logs",), "serve")
    assert result.returncode == 1
    assert "ModuleNotFoundError: No module named 'teesign_asgi.cli.logs'" in result.stderr
    assert "pip install" not in result.stderr


def test_the_package_can_be_run() -> None:
    """As `python -m teesign_asgi`."""
    command = [sys.executable, "-m", "teesign_asgi", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith(f"{__version__}\n")
