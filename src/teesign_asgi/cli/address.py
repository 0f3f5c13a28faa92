"""The address that a server is to listen on: found, free, and kept from other servers of this kind.

Theory of operation. Granian shares a port with any other granian of the same user (SO_REUSEPORT), and opens it only
when the app has its keys. Two `teesign serve` on one port would have other keys and other signatures, and clients would
meet now one and now the other. So there are two looks:

    claim   a name in the kernel for address and port, held to the end of the process: keeps out another teesign
    probe   bound to the port for a moment: finds any other program that listens

The name is that of an abstract Unix socket. The kernel takes it back with the process, however that ends, and has names
for each network namespace of its own, as it has ports. Only Linux has such names; elsewhere granian opens the port at
the start.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["claimed_address"]


@contextmanager
def claimed_address(host: str, port: int, *, chosen_with: str) -> Iterator[str]:
    """Keep an address for this process while the block runs, and give it in numbers: granian takes no names.

    Args:
        host: the address to listen on, or a name for it.
        port: where.
        chosen_with: what the operator can choose another one with, for the message.

    Raises:
        click.ClickException: if nobody can listen there, or somebody else does, or will.
    """
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            if sys.platform == "linux":
                claim.bind(f"\0teesign {address[0]} {port}")
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # Bound only: whoever connects to what listens for a moment takes the server for up.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise _cannot_listen(host, port, error.strerror or str(error), chosen_with) from error
        except UnicodeError as error:  # a label that is empty or too long
            raise _cannot_listen(host, port, "not a host name", chosen_with) from error
        yield str(address[0])


def _cannot_listen(host: str, port: int, why: str, chosen_with: str) -> click.ClickException:
    return click.ClickException(f"Cannot listen on {host} port {port}: {why}. Choose another with {chosen_with}")
