"""`teesign demo`: a model that echoes, the proxy in front of it, one chat, and every check of its signature.

The checks are those of `teesign.verify`, on the bytes that went over a real socket. What the demo cannot show is
hardware: its keys are random and its quote is simulated, so nothing is trusted here but the arithmetic.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Final

import anyio
import click
import httpcore
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

from teesign import (
    Identity,
    SigningAlgorithm,
    TeesignError,
    parse_quote,
    parse_signed_text,
    verify_digest,
    verify_ecdsa,
    verify_ed25519,
    verify_report_data,
)

from ..app import App
from ..settings import Settings
from .address import claimed_address

__all__ = ["EchoModel", "demo", "run_demo"]

MODEL: Final = "echo"
PROMPT: Final = "Every byte of this answer is signed."
_PACE: Final = 0.08
_LOG_NOTHING: Final[dict[str, Any]] = {"loggers": {"_granian": {"handlers": []}, "granian.access": {"handlers": []}}}


class EchoModel:
    """A backend that answers a chat with the words of its last message, streamed if asked to.

    Args:
        pace: seconds between two words.
    """

    def __init__(self, pace: float = 0.0) -> None:
        self._pace: Final = pace

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Answer a request as an OpenAI-compatible engine would."""
        assert isinstance(request.stream, AsyncIterable)
        body = b"".join([chunk async for chunk in request.stream])
        path = request.url.target.partition(b"?")[0]
        if path == b"/v1/models":
            return _json_response(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        if path != b"/v1/chat/completions":
            return _json_response(404, {"error": {"message": "The demo model only chats", "type": "not_found"}})
        chat = json.loads(body)
        words = _last_message(chat).split(" ")
        chat_id = f"chatcmpl-{secrets.token_hex(12)}"
        if chat.get("stream"):
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            return httpcore.Response(200, headers=headers, content=self._stream(chat_id, words))
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return _json_response(200, {"id": chat_id, "object": "chat.completion", "model": MODEL, "choices": [choice]})

    async def _stream(self, chat_id: str, words: list[str]) -> AsyncIterator[bytes]:
        for index, word in enumerate(words):
            choice = {"index": 0, "delta": {"content": word if index == 0 else f" {word}"}}
            event = {"id": chat_id, "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]}
            yield b"data: " + json.dumps(event).encode() + b"\n\n"
            await anyio.sleep(self._pace)
        yield b"data: [DONE]\n\n"


def _last_message(chat: dict[str, Any]) -> str:
    messages = chat.get("messages") or [{}]
    last = messages[-1]
    return str(last.get("content", "")) if isinstance(last, dict) else ""


def _json_response(status: int, value: Any) -> httpcore.Response:
    return httpcore.Response(
        status, headers=[(b"content-type", b"application/json")], content=json.dumps(value).encode()
    )


@click.command()
@click.option("--once", is_flag=True, help="End after the checks instead of serving on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port to listen on; any free one by default.")
def demo(*, once: bool, port: int) -> None:
    """Show a signed answer and every check of it, with a model that echoes."""
    code = run_demo(once=once, port=port)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of the embedded server may outlive it for a moment, and aborts the process if it finds the interpreter
    # being taken down. So it is not.
    os._exit(code)


def run_demo(*, once: bool, port: int) -> int:
    """Run the demo.

    Args:
        once: end after the checks; otherwise keep serving until interrupted.
        port: where to listen on loopback; 0 for any free port.

    Returns:
        The exit code: 0 if every check passed, else 1.

    Raises:
        click.ClickException: if somebody else uses the port.
    """
    port = port or _free_port()
    token = secrets.token_hex(8)
    settings = Settings(model_name=MODEL, tokens=(token,), dev=True, listen_host="127.0.0.1", listen_port=port)
    logging.getLogger("teesign_asgi").setLevel(logging.CRITICAL)
    with claimed_address(settings.listen_host, port, chosen_with="--port"):
        try:
            return asyncio.run(_serve_and_check(settings, token, once=once))
        except KeyboardInterrupt:
            return 0


async def _serve_and_check(settings: Settings, token: str, *, once: bool) -> int:
    server = Server(
        App(settings, upstream=EchoModel(_PACE)),
        address=settings.listen_host,
        port=settings.listen_port,
        interface=Interfaces.ASGI,
        websockets=False,
        log_level=LogLevels.critical,
        log_dictconfig=_LOG_NOTHING,
    )
    serving = asyncio.create_task(server.serve())
    try:
        passed = await asyncio.to_thread(_Visit(settings.listen_port, token).run)
        if not once:
            _show_what_to_try(settings.listen_port, token)
            await serving
    finally:
        server.stop()  # type: ignore[no-untyped-call] # granian leaves it without annotations
        await serving
    return 0 if passed else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Visit:
    """One visit to the demo's server, as somebody at the far end would make it: plain HTTP, and checks of one's own.

    Args:
        port: where the server listens.
        token: its bearer token.
    """

    def __init__(self, port: int, token: str) -> None:
        self._port: Final = port
        self._headers: Final = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def run(self) -> bool:
        """Chat, fetch the signature and the attestation reports, check everything; return whether all is well."""
        request = json.dumps(
            {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
        ).encode()
        self._wait_until_ready()
        click.secho("The model answers, through the proxy:", bold=True)
        signature_id, response = self._chat(request)
        answer = self._get(f"/v1/signature/{signature_id}")
        text = answer["text"]
        ecdsa_address, ed25519_address = answer["signing_address_ecdsa"], answer["signing_address_ed25519"]
        _, request_sha256, response_sha256 = parse_signed_text(text)

        def ecdsa() -> str:
            signature = answer["signature_ecdsa"]
            return f"{signature[:22]}… by {verify_ecdsa(text, signature, ecdsa_address)}"

        def ed25519() -> str:
            signature = answer["signature_ed25519"]
            verify_ed25519(text, signature, ed25519_address)
            return f"{signature[:22]}… by {ed25519_address}"

        click.secho("\nWhat was verified, with nothing but the bytes and the addresses:", bold=True)
        passed = [
            _tick("request hash", lambda: verify_digest("request", request, request_sha256)),
            _tick("response hash", lambda: verify_digest("response", response, response_sha256)),
            _tick("ECDSA signature", ecdsa),
            _tick("Ed25519 signature", ed25519),
            _tick("ECDSA report data", lambda: self._check_report("ecdsa", ecdsa_address)),
            _tick("Ed25519 report data", lambda: self._check_report("ed25519", ed25519_address)),
        ]
        click.echo("\nThe keys are random and the quote is simulated: this is a demo, not a trusted machine.")
        return all(passed)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                self._get("/version")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def _chat(self, request: bytes) -> tuple[str, bytes]:
        """Send a chat and show the answer as it arrives; return the signature's id and the bytes received."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        connection.request("POST", "/v1/chat/completions", request, self._headers)
        response = connection.getresponse()
        received = b""
        click.echo("  ", nl=False)
        for line in response:
            received += line
            click.echo(_word(line), nl=False)
        click.echo()
        connection.close()
        return response.headers["X-Signature-Id"], received

    def _get(self, target: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", target, headers=self._headers)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def _check_report(self, algorithm: SigningAlgorithm, address: str) -> str:
        nonce = secrets.token_bytes(32)
        report = self._get(f"/v1/attestation/report?signing_algo={algorithm}&nonce={nonce.hex()}")
        identity = Identity.from_public_key(algorithm, bytes.fromhex(report["signing_public_key"]))
        if not identity.matches(address):
            raise TeesignError("The report is about another key.", code="address_mismatch")
        data = verify_report_data(parse_quote(bytes.fromhex(report["intel_quote"])), identity, nonce)
        return f"{data[:32].hex()}\n{'':24}{data[32:].hex()}"


def _word(line: bytes) -> str:
    """Return the text in one line of the event stream."""
    if not line.startswith(b"data: {"):
        return ""
    delta = json.loads(line[6:])["choices"][0]["delta"]
    return str(delta["content"])


def _tick(name: str, check: Callable[[], str]) -> bool:
    """Run a check and show how it went, with its values."""
    try:
        value = check()
    except TeesignError as error:
        click.echo(f"{click.style('✗', fg='red')} {name:22}{error} ({error.code})")
        return False
    click.echo(f"{click.style('✓', fg='green')} {name:22}{value}")
    return True


def _show_what_to_try(port: int, token: str) -> None:
    base = f"http://127.0.0.1:{port}"
    header = f"-H 'Authorization: Bearer {token}'"
    chat = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]})
    click.secho("\nStill serving. Try:", bold=True)
    click.echo(f"  curl -i {header} -H 'Content-Type: application/json' -d '{chat}' {base}/v1/chat/completions")
    click.echo(f"  curl {header} {base}/v1/signature/ID_FROM_THE_ANSWER")
    click.echo(f"  curl {header} '{base}/v1/attestation/report?nonce={secrets.token_hex(32)}'")
    click.echo("End with Ctrl-C.")
