"""The demo, as a newcomer runs it, and the model that echoes in it."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore
import pytest
from processes import teesign_serve

from teesign import VerificationError
from teesign_asgi.cli import demo
from teesign_asgi.cli.demo import PROMPT, EchoModel, run_demo

pytestmark = pytest.mark.anyio

CHECKS = (
    "request hash",
    "response hash",
    "ECDSA signature",
    "Ed25519 signature",
    "ECDSA report data",
    "Ed25519 report data",
)


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    """The demo silences the proxy's logger."""
    logger = logging.getLogger("teesign_asgi")
    level = logger.level
    yield
    logger.setLevel(level)


def test_the_demo_shows_checks_that_pass() -> None:
    """It ends by itself, says so with its exit code, and writes no colours into a pipe."""
    command = [sys.executable, "-m", "teesign_asgi", "demo", "--once"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    ticks = [line for line in result.stdout.splitlines() if line.startswith("✓ ")]
    assert [line[2:].partition("  ")[0] for line in ticks] == list(CHECKS)
    assert "✗" not in result.stdout
    assert "\x1b" not in result.stdout
    assert PROMPT in result.stdout


def test_what_to_try_declares_its_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The chat carries its content type, without which engines on FastAPI refuse it."""
    demo._show_what_to_try(8000, "token")
    (chat,) = (line for line in capsys.readouterr().out.splitlines() if " -d " in line)
    assert "-H 'Content-Type: application/json'" in chat


def test_the_interpreter_is_not_taken_down() -> None:
    """A thread of the embedded server would abort the process then, once in forty times or more often."""
    script = (
        "import atexit, sys; atexit.register(print, 'taken down'); sys.argv = ['teesign', 'demo', '--once']; "
        "from teesign_asgi.__main__ import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert PROMPT in result.stdout
    assert "taken down" not in result.stdout


def test_a_check_that_fails_is_shown_and_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are made all the same."""

    def refuse(*_: object) -> None:
        raise VerificationError("It was somebody else.", code="wrong_signature")

    monkeypatch.setattr(demo, "verify_ed25519", refuse)
    monkeypatch.setattr(demo, "_PACE", 0.0)
    assert run_demo(once=True, port=0) == 1
    output = capsys.readouterr().out
    (failed,) = (line for line in output.splitlines() if line.startswith("✗ "))
    assert failed.split("  ")[0] == "✗ Ed25519 signature"
    assert failed.endswith(" It was somebody else. (wrong_signature)")
    assert output.count("✓ ") == len(CHECKS) - 1


def demo_on(port: int) -> subprocess.CompletedProcess[str]:
    """Run the demo on a port."""
    command = [sys.executable, "-m", "teesign_asgi", "demo", "--once", "--port", str(port)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_port_in_use() -> None:
    """The demo says so, and how to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = demo_on(port)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: Cannot listen on 127.0.0.1 port {port}: Address already in use. Choose another with --port\n"
    )


def test_a_port_in_use_by_a_server(log: Path) -> None:
    """The demo would share it, and meet the other's answers."""
    with teesign_serve(log) as process:
        process.wait_until_ready()
        result = demo_on(process.port)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Address already in use" in result.stderr


async def ask(target: str, body: object) -> tuple[int, bytes, list[bytes]]:
    """Return the model's status, content type and pieces of body."""

    class Body:
        async def __aiter__(self) -> Any:
            yield json.dumps(body).encode()

    request = httpcore.Request("POST", f"http://echo{target}", content=Body())
    response = await EchoModel().handle_async_request(request)
    pieces = [piece async for piece in response.aiter_stream()]
    await response.aclose()
    return response.status, dict(response.headers)[b"content-type"], pieces


def chat(content: object, **more: object) -> dict[str, object]:
    """Return a chat whose last message has this content."""
    return {"messages": [{"role": "system", "content": "no"}, {"role": "user", "content": content}], **more}


async def test_the_model_answers_with_the_last_message() -> None:
    """In one object with an id."""
    status, content_type, pieces = await ask("/v1/chat/completions?a=b", chat("what  was said"))
    answer = json.loads(b"".join(pieces))
    assert (status, content_type) == (200, b"application/json")
    assert answer["choices"][0]["message"]["content"] == "what  was said"
    assert answer["id"].startswith("chatcmpl-")


async def test_the_model_streams_word_by_word() -> None:
    """An event for each, with the same id, and the terminator."""
    status, content_type, pieces = await ask("/v1/chat/completions", chat("what  was said", stream=True))
    assert (status, content_type) == (200, b"text/event-stream; charset=utf-8")
    assert pieces.pop() == b"data: [DONE]\n\n"
    events = [json.loads(piece.removeprefix(b"data: ")) for piece in pieces]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == "what  was said"
    assert len(events) == 4
    assert len({event["id"] for event in events}) == 1


@pytest.mark.parametrize(
    ("body", "answer"),
    [({}, ""), ({"messages": []}, ""), ({"messages": ["x"]}, ""), ({"messages": [{}]}, ""), (chat(5), "5")],
)
async def test_the_model_makes_do_with_odd_chats(body: object, answer: str) -> None:
    """What is no message says nothing."""
    _, _, pieces = await ask("/v1/chat/completions", body)
    assert json.loads(b"".join(pieces))["choices"][0]["message"]["content"] == answer


@pytest.mark.parametrize(("target", "status"), [("/v1/models", 200), ("/v1/embeddings", 404), ("/", 404)])
async def test_the_model_does_nothing_else(target: str, status: int) -> None:
    """It says which model it is, and that it only chats."""
    found, _, pieces = await ask(target, {})
    assert found == status
    assert json.loads(b"".join(pieces))
