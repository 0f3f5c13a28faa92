"""What the text of an environment variable may be, and the value it stands for.

Each parser takes the text and returns the value, or raises ValueError with the rest of a sentence that begins with the
variable's name. None quotes the text: it may be a secret in the wrong place. `tokens` takes several texts, the `parts`
of one. What looks for a program looks at the machine, once the text is known to be one.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

import httpcore

from .certificate import BoundCertificate, CertificateError

__all__ = [
    "base_url",
    "boolean",
    "certificate",
    "choice",
    "command_line",
    "endpoint",
    "integer",
    "look_for_command",
    "look_for_program",
    "parts",
    "seconds",
    "text",
    "tokens",
    "url",
]

_TRUE: Final = frozenset(("1", "true", "yes", "on"))
_FALSE: Final = frozenset(("0", "false", "no", "off"))

_HOST_NAME: Final = re.compile(r"(?!.{255})(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")
"""What can be asked of DNS or a hosts file, IPv4 addresses among it; Docker's names of services have underscores."""

_UNIX_SOCKET: Final = re.compile(r"(?:https?://|https?\+)?unix:(?!\d)")
"""How the address of a Unix socket begins: to several programs, curl and nginx among them, one of these means one."""

_LEAST_SECONDS: Final = 0.1
"""The shortest time limit: to keep to one takes looking at a clock far more often than that."""


def text(value: str) -> str:
    """Take anything that can be printed, without the space around it."""
    if not value.strip():
        raise ValueError("is empty")
    if not value.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return value.strip()


def parts(value: str) -> list[str]:
    """Take a text apart at its commas; what is between two of them may be nothing, which is left out."""
    return [part for part in map(str.strip, value.split(",")) if part]


def tokens(values: Iterable[str]) -> tuple[str, ...]:
    """Take bearer tokens, one by one.

    Raises:
        ValueError: also for one text, since it would be taken for its characters, each of them a token.
    """
    if isinstance(values, str):
        raise ValueError(  # noqa: TRY004 - the caller makes a sentence of it, as of all others
            "is one text, of which each character would be a token: give a tuple of tokens"
        )
    found = tuple(values) if isinstance(values, Iterable) else (None,)
    if not all(isinstance(token, str) for token in found):
        raise ValueError("is no collection of texts: give a tuple of tokens")
    if not found:
        raise ValueError("holds no token")
    if "" in found:
        raise ValueError("holds an empty token")
    if not all(token.isascii() and token.isprintable() and not {" ", ","} & set(token) for token in found):
        raise ValueError("holds a token that no Authorization header can carry: use printable ASCII without spaces")
    return found


def boolean(value: str) -> bool:
    """Take one of the usual words for yes and no."""
    word = value.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("is not a boolean")
    return word in _TRUE


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers between these bounds, which are among them."""

    def parse(value: str) -> int:
        digits = value.strip()
        if not digits.isascii() or not digits.isdecimal():
            raise ValueError("is not a whole number")
        number = int(digits) if len(digits) < 20 else math.inf
        if number < minimum:
            raise ValueError(f"is less than {minimum}")
        if number > (maximum or 2**53):
            raise ValueError(f"is more than {maximum or 2**53}")
        return int(number)

    return parse


def seconds(*, zero: bool, maximum: float = math.inf) -> Callable[[str], float]:
    """Return a parser of numbers of seconds up to a maximum; `zero` says whether there may be none, or very few."""

    def parse(value: str) -> float:
        try:
            if not value.isascii() or "_" in value:
                raise ValueError
            number = float(value)
        except ValueError:
            raise ValueError("is not a number of seconds") from None
        if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
            raise ValueError("is not a positive number of seconds")
        if number < _LEAST_SECONDS and not zero:
            raise ValueError(f"is less than {_LEAST_SECONDS:g}")
        if number > maximum:
            raise ValueError(f"is more than {maximum:g}")
        return number

    return parse


def url(value: str) -> str:
    """Take an http or https URL, as it is."""
    address = value.strip()
    if _UNIX_SOCKET.match(address):
        raise ValueError("names a Unix socket, and backends are reached over TCP only: give a host and a port")
    scheme, separator, rest = address.partition("://")
    authority = rest.partition("/")[0]
    printable = address.isascii() and address.isprintable() and " " not in address
    if scheme not in ("http", "https") or not separator or not printable:
        raise ValueError("is not an http or https URL")
    if "?" in address or "#" in address:
        raise ValueError("has a query or a fragment")
    if "@" in authority:
        raise ValueError("holds a user name or password, which are not sent, and would be shown")
    try:
        parts = httpcore.URL(address)
    except ValueError:
        raise ValueError("is not an http or https URL") from None
    host = parts.host.decode()
    if not host:
        raise ValueError("has no host")
    if not (_is_ipv6(host) if authority.startswith("[") else _HOST_NAME.fullmatch(host)):
        raise ValueError("has a host that is neither a name nor an address")
    if parts.port == 0:
        raise ValueError("has port 0, where nothing can listen")
    return address


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def base_url(value: str) -> str:
    """Take the URL of a backend, below which paths are, and return it without slashes at its end."""
    return url(value).rstrip("/")


def endpoint(value: str) -> str:
    """Take the path of a Unix socket, or the URL of what listens elsewhere."""
    address = text(value)
    web = address.startswith(("http://", "https://"))
    if _UNIX_SOCKET.match(address) or ("://" in address and not web):
        raise ValueError("is neither the path of a Unix socket by itself nor an http or https URL")
    return base_url(address) if web else address


def choice(*choices: str) -> Callable[[str], str]:
    """Return a parser of one of these words, in any case."""

    def parse(value: str) -> str:
        word = value.strip().lower()
        if word not in choices:
            raise ValueError(f"is none of {', '.join(choices)}")
        return word

    return parse


def command_line(value: str) -> str:
    """Take a program with its arguments, as a shell would split them."""
    command = text(value)
    try:
        program = shlex.split(command)[0]
    except ValueError:
        raise ValueError("is no command line: a quotation mark or an escape has no end") from None
    if not program:
        raise ValueError("names no program")
    return command


def look_for_program(program: str) -> None:
    """Look whether a program can be found and executed, in the way in which it is started.

    Args:
        program: its path, or a name that is looked for in the directories of PATH.

    Raises:
        ValueError: if not.
    """
    if shutil.which(program) is not None:
        return
    if os.path.isdir(program):  # noqa: PTH112 - Path.is_dir raises where this user may not look
        raise ValueError("names a directory, not a program")
    if os.sep not in program:
        raise ValueError("names a program that is in no directory of PATH: give its whole path")
    if os.path.exists(program):  # noqa: PTH110 - likewise
        raise ValueError("names a file that may not be executed by this user")
    raise ValueError("names a program that is not there")


def look_for_command(command: str) -> None:
    """Look, as `look_for_program` does, for the program of what `command_line` took."""
    look_for_program(shlex.split(command)[0])


def certificate(value: str) -> Path:
    """Take the path of a file that holds a PEM certificate."""
    path = Path(value)
    try:
        BoundCertificate(path).read()
    except CertificateError as error:
        raise ValueError(f"names a file that {error.reason}") from None
    except ValueError:
        raise ValueError("is no path of a file") from None
    return path
