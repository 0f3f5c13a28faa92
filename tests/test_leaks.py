"""docs/threat-model.md, "What is logged": nothing that people say or hold secret reaches logs or metrics, in any form.

Each canary is a word that occurs nowhere else. It is searched for as it is, and in every form in which programs write
text that they quote: escaped, percent-encoded, as hex, as base64.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from backend import Backend, Call, Script, answer, chunked, event_stream, head, json_answer
from processes import teesign_serve
from servers import MAIN_KINDS, Kind, serve, settings_for
from wire import Client, multipart

from teesign.testing import fixed_pair
from teesign_asgi import App

CHAT = "/v1/chat/completions"
WITH_RULES_OF_THEIR_OWN = ("teesign", "httpcore", "uvicorn.access")
"""Loggers with rules of their own: the app's, whose lines are searched for more; httpcore's, which quotes malformed
responses at debug and which `teesign serve` keeps silent; and the server's access log, which shows whole targets."""


def canary(name: str) -> str:
    """Return a text with a plain word, one with an umlaut and one with a quote.

    None of them occurs anywhere else, nor does any form of them among random digits: they are too long.
    """
    return f"{name}canary7d1f {name}k\u00e4fig'{name}9e\""


PROMPT, COMPLETION, UPLOAD, MODEL, BODY_ID, ARGUMENTS = map(
    canary, ("prompt", "completion", "upload", "model", "bodyid", "arguments")
)
TOKEN = "tokencanary7d1f"
FILE_NAME, HEADER, QUERY, BACKEND_HEADER = (
    f"{name}canary7d1f" for name in ("filename", "header", "query", "backendheader")
)

IN_BODIES = [PROMPT, COMPLETION, UPLOAD, MODEL, BODY_ID, ARGUMENTS, TOKEN, FILE_NAME]
ANYWHERE = [*IN_BODIES, HEADER, QUERY, BACKEND_HEADER]


def forms(text: str) -> Iterator[str]:
    """Yield what a text may look like in a log, in lower case."""
    for word in text.replace("'", " ").split():
        data = word.encode()
        yield word
        yield json.dumps(word)[1:-1]
        yield repr(data)[2:-1]
        yield ascii(word)[1:-1]
        yield quote(word)
        yield quote(word, encoding="latin-1")
        yield "".join(f"%{byte:02x}" for byte in data)
        yield data.hex()
        yield data.hex(" ")
        yield word[::-1]
        for shift in range(3):  # base64 looks different at each of three positions; its ends depend on what is around
            encoded = base64.b64encode(bytes(shift) + data).decode().rstrip("=")
            yield encoded[4:-2]
            yield base64.urlsafe_b64encode(bytes(shift) + data).decode().rstrip("=")[4:-2]


def assert_clean(text: str, canaries: list[str]) -> None:
    """Check that no canary sings in a text, in any form."""
    lower = text.lower()
    found = {form for each in canaries for form in forms(each) if form.lower() in lower}
    assert not found


TOOL_CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": json.dumps({"for": ARGUMENTS})}}
]
"""Tool calls as OpenAI's clients and engines write them: the arguments are JSON in a string."""

ECHOES: dict[str, bytes] = {
    "pydantic": json.dumps(
        {
            "error": {
                "message": f"1 validation error for Request\nmessages\n  Input should be a valid list "
                f"[type=list_type, input_value={PROMPT!r}, input_type=str]",
                "type": "BadRequestError",
            }
        }
    ).encode(),
    "fastapi": json.dumps(
        {"detail": [{"type": "missing", "loc": ["body", PROMPT], "msg": "m", "input": {"p": PROMPT}, "ctx": PROMPT}]}
    ).encode(),
    "vllm": json.dumps(
        {
            "object": "error",
            "message": f"[{{'type': 'missing', 'loc': ('body',), 'msg': 'Field required', 'input': {PROMPT!r}}}]",
            "type": "BadRequestError",
        }
    ).encode(),
    "plain": json.dumps({"error": {"message": PROMPT, "type": PROMPT, "param": PROMPT, "code": PROMPT}}).encode(),
    "nested": json.dumps({"error": {"message": {"error": {"input": PROMPT}}, "type": "x"}}).encode(),
    "json in json": json.dumps({"error": {"message": json.dumps({"input": PROMPT})}}).encode(),
    "flat": json.dumps({"message": f"The model does not exist: {PROMPT}", "type": PROMPT.split()[0]}).encode(),
    "percent-encoded": json.dumps({"error": {"message": f"url={quote(PROMPT)}"}}).encode(),
    "base64": json.dumps({"error": {"message": base64.b64encode(PROMPT.encode()).decode()}}).encode(),
    "hex": json.dumps({"error": {"message": PROMPT.encode().hex()}}).encode(),
    "as type": json.dumps({"error": {"message": "m", "type": PROMPT.split()[0].rstrip("0123456789df")}}).encode(),
    "html": f"<html><pre>{PROMPT}</pre></html>".encode(),
    "text": PROMPT.encode(),
    "truncated": json.dumps({"error": {"message": PROMPT}}).encode()[:-8],
    "list": json.dumps([{"input": PROMPT}]).encode(),
    "huge": json.dumps({"error": {"message": PROMPT * 10_000}}).encode(),
}


def echo(status: int, body: bytes) -> Script:
    """Return a script that answers with an error."""
    return answer(status, body, b"content-type: application/json", f"x-error: {BACKEND_HEADER}".encode())


def _broken(call: Call) -> None:
    call.read_body()
    call.send(head(200, b"content-type: text/event-stream", b"transfer-encoding: chunked"))
    call.send(chunked(f'data: {{"id":"{BODY_ID}","text":"{COMPLETION}"}}\n\n'.encode(), end=False))
    call.send(f"{COMPLETION}\r\n".encode())
    call.close()


def _cut_json(call: Call) -> None:
    call.read_body()
    call.send(head(200, b"content-type: application/json", b"content-length: 9999"), COMPLETION.encode())
    call.close()


def _garbage(call: Call) -> None:
    call.read_body()
    call.send(f"{COMPLETION}\r\n{BACKEND_HEADER}: {COMPLETION}\r\n\r\n".encode())
    call.close()


SCRIPTS: list[Script] = [
    *(echo(status, body) for status in (400, 500) for body in ECHOES.values()),
    *(echo(400, json.dumps({"error": {"message": text}}).encode()) for text in (ARGUMENTS, json.dumps(TOOL_CALLS))),
    json_answer(json.dumps({"id": BODY_ID, "text": COMPLETION, "tool_calls": TOOL_CALLS}).encode()),
    event_stream(
        json.dumps({"text": COMPLETION, "tool_calls": TOOL_CALLS}).join(("data: ", "\n\ndata: [DONE]\n\n")).encode()
    ),
    answer(200, COMPLETION.encode(), f"content-type: {BACKEND_HEADER}".encode()),
    answer(307, COMPLETION.encode(), f"location: http://{BACKEND_HEADER}/".encode()),
    _broken,
    _cut_json,
    _garbage,
]


def sing(port: int, backend: Backend) -> str:
    """Send canaries in every place of a request, have the backend echo them in every way, and return the metrics."""
    client = Client(port, TOKEN)
    headers = [
        ("X-Custom", HEADER),
        ("User-Agent", HEADER),
        ("Cookie", f"a={HEADER}"),
        ("Accept", HEADER),
        ("X-Forwarded-For", HEADER),
        ("X-Request-ID", f"{HEADER}!"),
        ("traceparent", HEADER),
        ("Referer", f"http://x/?{HEADER}"),
    ]
    messages = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": None, "tool_calls": TOOL_CALLS},
        {"role": "tool", "tool_call_id": "call_1", "content": ARGUMENTS, "tool_calls": []},
    ]
    body = json.dumps({"model": MODEL, "messages": messages}).encode()
    upload, content_type = multipart(UPLOAD.encode(), FILE_NAME)
    for script in SCRIPTS:
        backend.play(script)
        for path in (CHAT, "/v1/other", "/v1/tokenize"):
            with client.open(
                "POST", f"{path}?q={QUERY}", [*headers, ("Content-Length", str(len(body)))], body
            ) as conversation:
                conversation.receive_all()
        with client.open(
            "POST",
            f"/v1/audio/transcriptions?q={QUERY}",
            [*headers, content_type, ("Content-Length", str(len(upload)))],
            upload,
        ) as conversation:
            conversation.receive_all()
    backend.play(json_answer(b"{}"))
    for bad in (body[:-1], PROMPT.encode(), b"[" + body + b"]", body + body, b'{"' + PROMPT.encode("utf-16") + b'"}'):
        assert client.post(f"{CHAT}?q={QUERY}", bad, headers).status == 400
    assert client.post(CHAT, body * 100).status == 413
    assert Client(port, f"{TOKEN}x").post(CHAT, body, headers).status == 401
    assert Client(port, None).post(CHAT, body, [("Authorization", f"Basic {TOKEN}")]).status == 401
    assert client.get(f"/v1/signature/{quote(BODY_ID)}?q={QUERY}").status in (200, 404)
    assert client.get(f"/v1/attestation/report?nonce={QUERY}").status == 400
    assert client.get(f"/v1/../x?{QUERY}").status == 400
    assert client.get(f"/sleep?{QUERY}").status == 404
    assert client.request("PUT", f"{CHAT}?{QUERY}").status == 405
    with client.open("POST", CHAT, [*headers, ("Content-Length", "9999")], body):
        pass
    return client.get("/metrics").body.decode()


@pytest.mark.parametrize("kind", MAIN_KINDS)
def test_logs_and_metrics_of_the_app(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    """With every logger at debug, nothing is in the app's own lines, and no body's words in those of its servers."""
    caplog.set_level(logging.DEBUG)
    with Backend() as backend:
        settings = settings_for(backend.url, tokens=(TOKEN,))
        with serve(App(settings, pair=fixed_pair()), kind) as port:
            metrics = sing(port, backend)
    own = [record for record in caplog.records if record.name.startswith("teesign")]
    assert len(own) > 100
    assert_clean(metrics, ANYWHERE)
    assert_clean("\n".join(f"{record.getMessage()} {vars(record)}" for record in own), ANYWHERE)
    others = [record.getMessage() for record in caplog.records if not record.name.startswith(WITH_RULES_OF_THEIR_OWN)]
    assert_clean("\n".join(others), IN_BODIES)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_output_of_the_process(tmp_path: Path, log_format: str) -> None:
    """Whatever `teesign serve` writes at level debug, there is no canary in it."""
    with (
        Backend() as backend,
        teesign_serve(
            tmp_path / "log",
            TOKEN=TOKEN,
            VLLM_BASE_URL=backend.url,
            LOG_LEVEL="debug",
            LOG_FORMAT=log_format,
            VLLM_PROXY_MAX_REQUEST_SIZE="5000",
            RATE_LIMIT_BURST_SIZE="100000",
        ) as process,
    ):
        process.wait_until_ready()
        metrics = sing(process.port, backend)
        process.terminate()
        assert process.wait() == 0
        assert len(process.lines()) > 100
        assert_clean(process.output(), ANYWHERE)
        assert_clean(metrics, ANYWHERE)


@pytest.mark.parametrize("canary_text", ANYWHERE)
def test_the_search_finds_canaries(canary_text: str) -> None:
    """The search itself is not deaf."""
    for sung in (
        canary_text,
        json.dumps({"a": canary_text}),
        repr(canary_text.encode()),
        canary_text.encode().hex(),
        base64.b64encode(f"x{canary_text}y".encode()).decode(),
        quote(canary_text),
    ):
        with pytest.raises(AssertionError):
            assert_clean(f"... {sung} ...", [canary_text])
