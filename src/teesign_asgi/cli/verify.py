"""`teesign verify`: a server at the far end, or a bundle that was kept of one, verified step by step.

Exit codes: 0 if all was verified, 1 if a check failed, 2 if the command or its files are wrong, or the server refuses
the token, 3 if something could not be fetched, 4 if something unexpected happened or the verdict could not be written,
and 130 if the command was interrupted. A file needs the extra `verify`, a server `client`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from teesign.client import INTEL_PCS, Answer, Question, Server, Trust, ask_with, parse_collateral, round_trip, run
from teesign.errors import FetchError, TeesignError, UsageError, VerificationError
from teesign.verify.answer import WHEN_ANSWERED
from teesign.verify.bundle import decode_bundle, encode_bundle, verify_bundle
from teesign.verify.policy import Policy, parse_policy

from . import missing_package
from .verdict import Verdict

__all__ = ["verify"]

_FAILED, _USAGE, _UNREACHABLE, _UNEXPECTED, _INTERRUPTED = 1, 2, 3, 4, 130
_ANOTHER_FILE: Final = frozenset(("not_a_bundle", "unknown_bundle_format"))
_PROMPT: Final = "Say hello in one short sentence."
_TOKEN: Final = "TOKEN"  # noqa: S105 - the name of the variable
_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_LIVE_ONLY: Final = ("token_file", "model", "prompt", "collateral", "pccs", "algorithm", "timeout", "bundle")

Value = TypeVar("Value")


def _file(name: str, parameter: str, metavar: str, help_text: str) -> Callable[[Any], Any]:
    kind = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option(name, parameter, metavar=metavar, type=kind, help=help_text)


def _number(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):  # which no range keeps out
        raise click.BadParameter("It must be a number.")
    return value


class _Command(click.Command):
    """A command whose exit codes say no more than they should: what is unexpected exits with 1 otherwise."""

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name in letters that the terminal does not have must not keep anything from being shown.
            sys.stdout.reconfigure(errors="replace")
        try:
            _need_output()
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)
        except OSError as error:
            # Servers and files have exceptions of their own by now: this is the output.
            if sys.stderr is not None:  # older releases of click stumble over none
                with contextlib.suppress(OSError):
                    click.echo(f"Error: The verdict cannot be written: {error.strerror}.", err=True)
            _write_nothing_more()
            sys.exit(_UNEXPECTED)
        except Exception:  # noqa: BLE001 - it is shown
            traceback.print_exc()
            sys.exit(_UNEXPECTED)


def _need_output() -> None:
    """Raise an OSError if the process was started with its standard output closed: click writes to none in silence."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _write_nothing_more() -> None:
    """Send to nowhere what waits to be written: the interpreter tries again at its end, and then has its own code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            os.dup2(nowhere, stream.fileno())


@click.command(cls=_Command, short_help="Verify the answers of a server, or the evidence that was kept of one.")
@click.argument("url", required=False)
@_file("--offline", "offline", "BUNDLE", "Verify again what --bundle has kept, from this file alone.")
@_file("--token-file", "token_file", "FILE", f"File with the bearer token; by default it is taken from {_TOKEN}.")
@click.option("--model", metavar="NAME", help="Model to ask; the one that the report names by default.")
@click.option("--prompt", metavar="TEXT", default=_PROMPT, show_default=True, help="What to ask, before a random word.")
@_file("--policy", "policy", "FILE", "What to accept, as JSON; by default any software on an up-to-date machine.")
@_file("--collateral", "collateral", "FILE", "Intel's collateral, as JSON; it is fetched by default.")
@click.option("--pccs", metavar="URL", default=INTEL_PCS, show_default=True, help="Where collateral is fetched from.")
@click.option(
    "--algorithm",
    type=click.Choice(["ecdsa", "ed25519"]),
    default="ecdsa",
    show_default=True,
    help="Which of the server's keys to attest.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 86_400),
    callback=_number,
    default=120.0,
    show_default=True,
    help="Seconds for an answer.",
)
@click.option("--bundle", metavar="FILE", type=click.Path(path_type=Path), help="Where to keep the evidence.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object instead of lines.")
@click.pass_context
def verify(context: click.Context, /, url: str | None, offline: Path | None, *, as_json: bool, **options: Any) -> None:
    """Verify the server at URL: attest it, ask its model something, and check that the attested key signed the answer.

    With --offline, do so again from a file. Exits with 0 if all was verified, 1 if a check failed, 2 if something is
    wrong with the command, its files or the token, 3 if something could not be fetched, and 4 if something unexpected
    happened or the verdict could not be written.
    """
    if (url is None) == (offline is None):
        raise click.UsageError("Give either the URL of a server or --offline with a file.")
    policy = None if options["policy"] is None else _read(options["policy"], parse_policy)
    if offline is not None:
        given = [name for name in _LIVE_ONLY if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise click.UsageError(f"--offline goes with --policy and --json only, not with {flags}.")
        kept = _read(offline, bytes)
        verdict = Verdict(str(offline), as_json=as_json)
        _conclude(verdict, lambda: _verify_file(verdict, offline, kept, policy))
    assert url is not None
    try:
        server = Server(_address(url), _authorization(options["token_file"]), options["algorithm"], options["model"])
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    collateral = None if options["collateral"] is None else _read(options["collateral"], parse_collateral)
    trust = Trust(policy or Policy(), collateral, _address(options["pccs"]))
    with _client() as client:
        verdict = Verdict(server.base, as_json=as_json)
        ask = ask_with(client, limit=options["timeout"])
        _conclude(verdict, lambda: _visit(verdict, server, trust, ask, options["prompt"], options["bundle"]))


def _conclude(verdict: Verdict, work: Callable[[], None]) -> NoReturn:
    """Do the work, show what came of it, and exit."""
    code = 0
    try:
        work()
    except TeesignError as error:
        verdict.failed(error)
        code = _exit_code(error)
    verdict.end()
    sys.exit(code)


def _exit_code(error: TeesignError) -> int:
    if isinstance(error, FetchError):
        return _USAGE if error.status in (401, 403) or error.code == "bad_url" else _UNREACHABLE
    return _USAGE if isinstance(error, UsageError) or error.code in _ANOTHER_FILE else _FAILED


def _verify_file(verdict: Verdict, file: Path, kept: bytes, policy: Policy | None) -> None:
    """Verify a bundle again."""
    try:
        bundle = decode_bundle(kept)
        result = verify_bundle(bundle, policy, passed=verdict.passed)
    except UsageError as error:
        # Whatever is wrong with the contents of a bundle is wrong with what it should prove.
        raise VerificationError(str(error), code=error.code, step="bundle") from error
    verdict.verified(result, result.not_established, bundle.verified_at)
    verdict.kept(str(file), sha256(kept).hexdigest())


def _visit(
    verdict: Verdict, server: Server, trust: Trust, ask: Callable[[Question], Answer], prompt: str, keep: Path | None
) -> None:
    """Verify a server, and keep the evidence."""
    flow = round_trip(server, trust, prompt, random=secrets.token_bytes, clock=time.time, passed=verdict.passed)
    bundle = run(flow, ask)
    result = verify_bundle(bundle, trust.policy, roots=trust.roots)
    written = None if keep is None else encode_bundle(bundle)
    if keep is not None and written is not None:
        try:
            keep.write_bytes(written)
        except OSError as error:
            raise UsageError(f"The evidence cannot be written: {error.strerror}.", code="bundle_not_written") from error
    # Whoever has just asked knows when that was, which nonce was sent, and that nobody had asked the same before.
    of_answer = (item for item in result.answer.not_established if item != WHEN_ANSWERED)
    open_ = (*result.report.not_established, *of_answer)
    verdict.verified(result, open_, bundle.verified_at)
    if written is not None:
        verdict.kept(str(keep), sha256(written).hexdigest())


def _read(path: Path, parse: Callable[[bytes], Value]) -> Value:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise click.UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except TeesignError as error:
        raise click.UsageError(f"{path}: {error}") from error


def _address(url: str) -> str:
    """Return an address without a slash at its end, if requests can be sent below it."""
    try:
        parts = urlsplit(url)
        # Asking for the port checks it.
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        usable = known and not parts.query and not parts.fragment
        password = "@" in parts.netloc
    except ValueError:
        usable = password = False
    if password:
        raise click.UsageError("A URL must hold no password: it would show in process listings.")
    if not usable:
        raise click.UsageError("A URL must be like https://example.org or https://example.org/path.")
    return url.rstrip("/")


def _authorization(token_file: Path | None) -> str | None:
    """Return the header for the token in a file or in the environment; None if there is neither."""
    text = os.environ.get(_TOKEN) if token_file is None else _read(token_file, lambda data: data.decode("latin-1"))
    if text is None:
        return None
    # Servers take several in this variable, and one will do.
    token = text.partition(",")[0].strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise click.UsageError(f"{token_file or _TOKEN} does not hold a token.")
    return f"Bearer {token}"


def _client() -> Any:
    try:
        import httpx  # a file is verified without it
    except ModuleNotFoundError as error:
        raise click.UsageError(missing_package(error, "client")) from error
    name = next((name for name in _CERTIFICATES if os.environ.get(name)), "")  # httpx looks at the first one only
    try:
        if name == "SSL_CERT_DIR":
            _look_into(os.environ[name])
        return httpx.Client()
    except OSError as error:  # which does not name the file
        which = f"certificates of {name} ({os.environ[name]})" if name else "authorities' certificates"
        raise click.UsageError(f"The {which} cannot be used: {error}") from error
    except httpx.InvalidURL:
        # Its message has a piece of what is no URL: of a password with a slash in it, for instance.
        raise click.UsageError(
            "The environment's proxies cannot be used: one is no URL. In a user or password write / as %2F, @ as %40."
        ) from None
    except (ValueError, ImportError) as error:
        raise click.UsageError(f"The environment's proxies cannot be used: {error}") from error


def _look_into(folders: str) -> None:
    """Raise an OSError unless one of the folders is there: OpenSSL says nothing before it misses a certificate."""
    paths = [Path(folder) for folder in folders.split(os.pathsep)]
    if not any(path.is_dir() for path in paths):
        list(paths[0].iterdir())
