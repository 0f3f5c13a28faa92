"""The command line: which commands there are. What a command needs is imported when it is used.

`teesign verify` runs at the far end, where nobody wants a server; so no command may need another's packages.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final, NoReturn

import click

from teesign import __version__

__all__ = ["missing_package", "teesign"]

_COMMANDS: Final = {"serve": "server", "demo": "server", "verify": "client"}
"""The commands, each in a module of its own name, and the extra that brings what they need."""


class _Commands(click.Group):
    """Commands that are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - likewise
        if cmd_name not in _COMMANDS:
            return None
        try:
            module = importlib.import_module(f".{cmd_name}", __package__)
        except ModuleNotFoundError as error:
            return _unavailable(cmd_name, error)
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="teesign")
def teesign() -> None:
    """Signed and attested answers from language models in trusted execution environments."""


def missing_package(error: ModuleNotFoundError, extra: str) -> str:
    """Return what to tell somebody who lacks a package.

    Args:
        error: what the import raised.
        extra: what to install.

    Raises:
        ModuleNotFoundError: the same one, if it is about a module of our own, which installing would not bring.
    """
    if error.name is None or error.name.partition(".")[0] in ("teesign", "teesign_asgi"):
        raise error
    return f"This needs the package {error.name}. Install it: pip install 'teesign[{extra}]'"


def _unavailable(name: str, error: ModuleNotFoundError) -> click.Command:
    """Return a command that takes anything, and says what to install."""
    message = missing_package(error, _COMMANDS[name])

    def tell() -> NoReturn:
        given = {argument.partition("=")[0] for argument in click.get_current_context().args}
        # A file is verified with less than a server.
        extra = "verify" if name == "verify" and "--offline" in given else _COMMANDS[name]
        click.echo(f"teesign {name}: {missing_package(error, extra)}", err=True)
        sys.exit(2)

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, context_settings=anything, callback=tell, add_help_option=False, help=message)
