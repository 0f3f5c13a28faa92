"""The documents say what the code does: tables are compared with tables, examples are run, links are followed."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import httpx2
import pytest
from backend import Backend, event_stream
from prometheus_client.parser import text_string_to_metric_families
from raw_backend import PATIENCE, RawBackend, Served, in_turn
from servers import TOKEN, serve

from soak.__main__ import FIGURES
from teesign import Exchange, MalformedError, VerifiedExchange, verify_answer
from teesign.client import VerifyingTransport
from teesign.sse import MAX_EVENT, MAX_HELD
from teesign.testing import counting_random, fixed_pair
from teesign.verify.bundle import BUNDLE_FORMAT, EvidenceBundle, encode_bundle
from teesign.verify.policy import Policy, parse_policy, policy_members
from teesign_asgi.bodies import MAX_EMPTY_TOOL_CALLS, MAX_OBJECTS
from teesign_asgi.cli.serve import _HTTP1_BUFFER
from teesign_asgi.connection import HIGH_WATER
from teesign_asgi.http import PIECE
from teesign_asgi.metrics import Metrics
from teesign_asgi.observe import backend_error_fields
from teesign_asgi.pool import _READ_SIZE
from teesign_asgi.relay import _NAMED_REQUEST_HEADERS, _NAMED_RESPONSE_HEADERS, Outcome
from teesign_asgi.routes import ENDPOINTS, Handling
from teesign_asgi.settings import VARIABLES, Settings
from teesign_asgi.upstream import CONNECT_TIMEOUT, STALE_WINDOW

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
CONTRACT = " ".join((ROOT / "docs" / "wire-contract.md").read_text().split())
OPERATING = (ROOT / "docs" / "operating.md").read_text()
VERIFYING = (ROOT / "docs" / "verifying.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
EVENTS_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
WHOLE = JSON_HEAD + b'Content-Length: 15\r\n\r\n{"choices": []}'


def rows(document: str, header: str) -> list[list[str]]:
    """Return the rows of the table with this header, cell by cell."""
    table = document.partition(f"{header}\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def shown(value: object) -> str:
    """Return a setting's default as the table shows it."""
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_the_readme_lists_every_setting() -> None:
    """Each variable is there with its default and its help, in the order of the code."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    expected = [[f"`{variable.name}`", shown(defaults[name]), variable.help] for name, variable in VARIABLES.items()]
    assert rows(README, "| Variable | Default | What it does |") == expected


def test_the_readme_lists_every_endpoint() -> None:
    """Each row of the endpoint table is there, with whether it needs a token and is signed."""
    expected = [
        [endpoint.method, f"`{endpoint.label}`", "yes" if endpoint.auth else "no", "yes" if endpoint.signed else "no"]
        for endpoint in ENDPOINTS
    ]
    listed = rows(README, "| Method | Path | Token | Signed | Answered by |")
    assert [row[:4] for row in listed[:-1]] == expected
    assert listed[-1][:4] == ["any", "any other path", "yes", "yes"]


def test_the_readme_names_the_backend_that_can_be_chosen() -> None:
    """Each endpoint with an override names its variable, and each with another path names that."""
    listed = rows(README, "| Method | Path | Token | Signed | Answered by |")
    for endpoint, row in zip(ENDPOINTS, listed, strict=False):
        if endpoint.backend_url:
            assert f"`{VARIABLES[endpoint.backend_url].name}`" in row[4]
        if endpoint.backend_path:
            assert row[4] == f"the backend's `{endpoint.backend_path}`"
        elif endpoint.handling in (Handling.RELAY_JSON, Handling.RELAY_STREAM):
            assert row[4].startswith("the backend")


def test_the_example_of_checking_works() -> None:
    """The README's way to check a signature accepts a real one."""
    exchange = Exchange(fixed_pair(), id_prefix="chatcmpl", random=counting_random())
    exchange.receive_request(b"{}")
    exchange.start_response(200, "text/plain")
    exchange.receive_response(b"answer")
    exchange.end_response()
    assert exchange.signed is not None
    signature = exchange.signed.chat.answer()
    names = run(EXAMPLES[0], signature=signature, request_body=b"{}", response_body=b"answer")
    assert isinstance(names["verified"], VerifiedExchange)


def test_the_example_of_embedding_works() -> None:
    """The README's loop signs an answer that the cache then finds, and answers as the proxy does."""
    names = embedded(WHOLE)
    inserted, rest = names["sent"].split(b",", 1)
    assert inserted.startswith(b'{"id":"chatcmpl-')
    assert rest == b'"choices": []}'
    chat = names["cache"].get(json.loads(names["sent"])["id"])
    assert names["answer"] == chat.answer("ecdsa")
    address = names["pair"].ecdsa.identity.address
    verify_answer(b'{"messages": []}', names["sent"], names["answer"], algorithm="ecdsa", address=address)


def test_the_example_of_embedding_keeps_the_end_back() -> None:
    """Of any response: nothing that ends it comes out before the signature is stored; an error passes unsigned."""
    names = embedded(WHOLE)
    relay, cache = names["relay"], names["cache"]

    def begun(status: int, content_type: str) -> Exchange:
        exchange = Exchange(names["pair"], id_prefix="chatcmpl", random=secrets.token_bytes)
        exchange.receive_request(b"{}")
        exchange.start_response(status, content_type)
        return exchange

    exchange = begun(200, "text/event-stream")
    stream = [b'data: {"id":"an-id"}\n\n', b"data: [DONE]\n\n", b"more"]
    out = relay(exchange, stream)
    assert next(out) == stream[0]
    assert cache.get("an-id") is None
    assert next(out) == stream[1]
    assert cache.get("an-id") is cache.get(exchange.signature_id) is not None
    assert list(out) == []
    exchange = begun(200, "audio/mpeg")
    assert b"".join(relay(exchange, [b"au", b"dio"])) == b"audio"
    assert cache.get(exchange.signature_id) is not None
    exchange = begun(500, "application/json")
    assert b"".join(relay(exchange, [b'{"error"', b":1}"])) == b'{"error":1}'
    assert cache.get(exchange.signature_id) is None
    exchange = begun(200, "application/json")
    with pytest.raises(OSError, match="broken off"):
        list(relay(exchange, broken_off()))
    assert cache.get(exchange.signature_id) is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        pytest.param(JSON_HEAD + b'Content-Length: 1000\r\n\r\n{"choices"', MalformedError, id="object"),
        pytest.param(JSON_HEAD + b"Content-Length: 1000\r\n\r\n[1, ", MalformedError, id="array"),
        pytest.param(EVENTS_HEAD + b"Content-Length: 1000\r\n\r\ndata: [DONE]\n", MalformedError, id="event stream"),
        pytest.param(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", HTTPException, id="chunked"),
    ],
)
def test_the_example_of_embedding_signs_nothing_that_was_cut(answer: bytes, problem: type[Exception]) -> None:
    """The standard library's client ends a body of declared length that was cut without a word; so the loop raises."""
    names: dict[str, Any] = {}
    with pytest.raises(problem):
        embedded(answer, names)
    assert (len(names["cache"]), names["exchange"].signed) == (0, None)
    assert "sent" not in names


def embedded(answer: bytes, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the README's loop over an answer from a socket, and return the names it has left, in `names` if it fails."""
    names = {} if names is None else names
    question = b'{"messages": []}'
    # Whole, before anything is answered: a connection that is closed over unread bytes is reset.
    script = in_turn(
        Served.read, lambda served: served.read(question), lambda served: served.send(answer), Served.close
    )
    with RawBackend(script) as backend:
        connection = HTTPConnection("127.0.0.1", backend.port, timeout=PATIENCE)
        with closing(connection):
            connection.request("POST", "/v1/chat/completions", question)
            names["response"] = connection.getresponse()
            exec(compile(EXAMPLES[1], "README.md", "exec"), names)
    return names


def broken_off() -> Iterator[bytes]:
    """Yield part of a body, and fail."""
    yield b'{"a":1'
    raise OSError("broken off")


@pytest.mark.anyio
async def test_the_example_of_mounting_works(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The README's way to mount the app makes a FastAPI application with it inside, which starts it.

    Where it would listen does not matter there, so nobody is warned that the backend has the same port by default.
    """
    for name, value in {"MODEL_NAME": "m", "TOKEN": "t", "DEV": "1"}.items():
        monkeypatch.setenv(name, value)
    names = run(EXAMPLES[2])
    gateway = names["gateway"]
    assert [route.path for route in gateway.routes][-1] == "/llm"
    async with gateway.router.lifespan_context(gateway):
        assert names["proxy"].pair
    assert "DEV is on" in caplog.text
    assert "VLLM_BASE_URL" not in caplog.text


def test_the_example_of_mounting_is_verified_as_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """What README mounts, on a real server, is found by the transport that docs/verifying.md shows for it."""
    (shown,) = re.findall(r"`(VerifyingTransport\(.*prefix=.*\))`", VERIFYING)
    with Backend() as backend:
        backend.play(event_stream(b'data: {"id":"chatcmpl-s"}\n\n', b"data: [DONE]\n\n"))
        for name, value in {"MODEL_NAME": "m", "TOKEN": TOKEN, "DEV": "1", "VLLM_BASE_URL": backend.url}.items():
            monkeypatch.setenv(name, value)
        with serve(run(EXAMPLES[2])["gateway"], "uvicorn") as port:
            policy = '{"policy": "UnsafeSimulatedPolicy"}'
            names = {"policy_json": policy, "parse_policy": parse_policy, "VerifyingTransport": VerifyingTransport}
            headers = {"Authorization": f"Bearer {TOKEN}"}
            with httpx2.Client(transport=eval(shown, names), headers=headers) as client:
                answered = client.post(f"http://127.0.0.1:{port}/llm/v1/chat/completions", json={"stream": True})
    assert answered.content.endswith(b"data: [DONE]\n\n")
    assert "teesign" in answered.extensions


def test_every_chat_shown_declares_its_json() -> None:
    """Engines on FastAPI answer 422 to JSON that does not say what it is; the proxy passes on what the client says."""
    commands = re.sub(r"\\\n *", "", README).splitlines()
    chats = [line for line in commands if line.startswith("    curl ") and " -d " in line]
    assert chats
    assert all(" -H 'Content-Type: application/json' " in chat for chat in chats)


def named(document: str, header: str) -> list[str]:
    """Return the names in the first column of a table, several in a cell one by one."""
    return [name for row in rows(document, header) for name in re.findall(r"`(\w+)`", row[0])]


def test_the_operators_page_names_every_metric() -> None:
    """Each is there with its type, its labels and its help, in the order in which they are shown."""
    metrics = Metrics(open_streams=lambda: 0, cache_entries=lambda: 0)
    metrics.endpoint("/").note(status=200, duration=1, received=0, sent=0, signed=True, client_gone=False)
    for counter in (metrics.lookups, metrics.client_stalls, metrics.backend_errors):
        counter.labels("any")
    expected = []
    for family in text_string_to_metric_families(metrics.render().decode()):
        if not family.name.endswith("_created"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in family.samples[0].labels if label != "le")
            expected.append([f"`{name}`", family.type, labels, family.documentation])
    assert rows(OPERATING, "| Name | Type | Labels | What it counts |") == expected


def test_the_operators_page_names_every_field_of_a_request() -> None:
    """In their order, and with all that a backend's error can add."""
    error = backend_error_fields(b'{"message": "bad", "type": "t"}')
    outcome = Outcome(True, 200, error, signed=True, broken="reset", client_gone=True, stalled="request")
    first = ["request_id", "method", "path", "status", "ms", "received", "sent", "backend"]
    assert sorted(named(OPERATING, "| Field | What it is |")) == sorted([*first, *outcome.fields()])


def test_the_operators_page_names_every_event() -> None:
    """That has fields: each call that writes a line, in the level that it has there."""
    listed = {row[0].strip("`"): row[1] for row in rows(OPERATING, "| Event | Level | Fields |")}
    written = {"request", "log lines were dropped, since nobody read them"}
    for path in (ROOT / "src" / "teesign_asgi").rglob("*.py"):
        for event_level, event in re.findall(r'log_event\(\s*logging\.(\w+),\s*"([^"]+)"', path.read_text()):
            written.add(event)
            assert listed[event] == event_level.lower()
    assert listed.keys() == written - {"request"}


def test_the_contract_names_the_headers_that_named_endpoints_pass_on() -> None:
    """In both directions."""
    to_backend, to_client = re.findall(r"Named endpoints pass on (.*?)[.;] ", CONTRACT)
    assert re.findall(r"`(.*?)`", to_backend) == [name.decode() for name in _NAMED_REQUEST_HEADERS]
    assert re.findall(r"`(.*?)`", to_client) == sorted(name.decode() for name in _NAMED_RESPONSE_HEADERS)


@pytest.mark.parametrize(
    ("sentence", "limit", "value"),
    [
        ("If there is no connection in 10 seconds,", CONNECT_TIMEOUT, 10),
        ("that ends within 0.2 seconds, before a byte", STALE_WINDOW, 0.2),
        ("so does an event of more than 32 MiB", MAX_EVENT, 32 << 20),
        ("or of more than 32 KiB together with the request line", _HTTP1_BUFFER, 32 << 10),
        ("A body with more than 4,096 such lists", MAX_EMPTY_TOOL_CALLS, 4_096),
        ("or more than 100,000 opening braces", MAX_OBJECTS, 100_000),
    ],
)
def test_the_contract_names_the_limits_of_the_code(sentence: str, limit: float, value: float) -> None:
    """Tests set these lower, so that none would notice another value."""
    assert sentence in CONTRACT
    assert limit == value


def test_what_is_held_for_a_client_that_reads_slowly() -> None:
    """All the places in which a response waits hold 256 KiB at most, beside what the kernel and TLS do."""
    read_from_the_backend = HIGH_WATER + _READ_SIZE
    assert read_from_the_backend + MAX_HELD + PIECE + _HTTP1_BUFFER <= 256 << 10


def test_the_page_for_the_far_end_names_every_member() -> None:
    """Of policies, and of bundles in their order."""
    policy, bundle = VERIFYING.split("## Keeping the evidence")
    assert sorted(named(policy, "| Member | |")) == sorted(policy_members(Policy()))
    members = EvidenceBundle(0, Policy(), bytes(32), None, {}, None, b"", b"", {})
    assert named(bundle, "| Member | |") == list(json.loads(encode_bundle(members)))
    assert f"| `format` | `{BUNDLE_FORMAT}` |" in bundle


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Each relative link names a file that is there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).is_file(), target


def test_references_to_the_documents_lead_somewhere() -> None:
    """What the sources name of a document, in quotes behind its file, is a heading there; no section has a number."""
    found = 0
    for source in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = source.read_text()
        for document, names in re.findall(r'([\w/-]+\.md), ((?:"[\w ,-]+"(?:, | and )?)+)', text):
            for name in re.findall(r'"(.+?)"', names):
                found += 1
                assert re.search(rf"^#+ {name}$", (ROOT / document).read_text(), re.MULTILINE), (source, name)
        assert not re.search(r"(?i)sections? \d.* contract\b|contract's\ssection", text), source
    assert found > 10


def test_what_is_promised_is_shown_by_tests_that_exist() -> None:
    """Each name in the table of promises is that of a test, and each figure one that can be run."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    promises = page.partition("## What we promise")[2].partition("\n## ")[0]
    names = re.findall(r"`(test_\w+|\w+Machine)`", promises)
    assert len(names) > 40
    for name in names:
        assert re.search(rf"(def|class) {name}\b", sources), name
    figures = set(re.findall(r"figure `([\w-]+)`|--figure ([\w-]+)", page))
    assert {one or other for one, other in figures} <= set(FIGURES)


def run(example: str, **names: Any) -> dict[str, Any]:
    """Run an example and return the names it has left behind."""
    namespace = dict(names)
    exec(compile(example, "README.md", "exec"), namespace)
    return namespace
