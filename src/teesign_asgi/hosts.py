"""Servers that the app must not run under, since they undo what it promises.

A response that breaks off is left without its last body message. Its connection is ended by `client_connection`, where
that finds it; elsewhere, and over HTTP/2, it is the server that has to break it off. One that ends the response in an
orderly way instead makes half an answer look like a whole one.
"""

from __future__ import annotations

import re
import sys
from typing import Final

from .errors import StartError

__all__ = ["check_server"]

_FIRST_GOOD: Final = {"granian": (2, 8, 6)}
"""The first version that breaks the connection off, of servers whose older ones do not."""


def check_server() -> None:
    """Look whether the server that runs in this process is one that breaks off what has broken off.

    No server says which it is, so those count that have been imported. Others are not known here: whether they do it is
    not established.

    Raises:
        StartError: if there is one that does not.
    """
    for name, first_good in _FIRST_GOOD.items():
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None and tuple(map(int, re.findall(r"\d+", version)[:3])) < first_good:
            needed = ".".join(map(str, first_good))
            raise StartError(
                f"{name} {version} ends responses that broke off as if they were whole. "
                f"Install {name} {needed} or newer."
            )
