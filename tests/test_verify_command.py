"""`teesign verify`: against servers over real sockets, and from files; what it says, and how it exits."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import certifi
import httpx
import pytest
from authorities import ROOTS, Authority
from backend import Backend, Call, Script, answer, json_answer
from changes import CHAT, at
from click.testing import CliRunner, Result
from far_end import COLLATERAL, GenuineGpus, GenuineQuotes, clock, genuine_stack, pccs
from mitm import middle_man, tls_front
from servers import SECOND_TOKEN, TOKEN, Stack, free_port, serve, settings_for, stack
from support import wait_until
from test_cli import run_without

from teesign.client import Trust
from teesign.sources import Sources
from teesign.testing import fixed_pair
from teesign.verify.answer import ANSWER_STEPS
from teesign.verify.bundle import EvidenceBundle, VerifiedBundle, verify_bundle
from teesign.verify.policy import Policy, UnsafeSimulatedPolicy, policy_members
from teesign.verify.report import STEPS
from teesign.verify.steps import Passed
from teesign_asgi import App
from teesign_asgi.cli import teesign
from teesign_asgi.cli import verify as command
from teesign_asgi.cli.meanings import meaning_of
from teesign_asgi.cli.verdict import Verdict
from teesign_asgi.types import Message, Receive, Scope, Send

NAMES = [step.name for step in (*STEPS, *ANSWER_STEPS)]
UNSAFE = json.dumps({"policy": "UnsafeSimulatedPolicy"})
RESPONSE = b'{"id":"chatcmpl-7","choices":[]}'


def run(*arguments: object, **environment: str | None) -> Result:
    """Run the command in this process, with a good token in its variable unless that is to be another."""
    return CliRunner(env={"TOKEN": TOKEN, **environment}).invoke(teesign, ["verify", *map(str, arguments)])


def url_of(running: Stack) -> str:
    """Return the address of a server."""
    return f"http://127.0.0.1:{running.client.port}"


def marks(result: Result) -> list[tuple[str, str]]:
    """Return the mark and the name of each step that is shown."""
    lines = [line for line in result.output.splitlines() if line[:2] in ("✓ ", "✗ ", "- ")]
    return [(line[0], line[5:23].strip()) for line in lines]


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command trust the test's authorities, at a time when all that they have issued is valid."""
    monkeypatch.setattr(command, "Trust", partial(Trust, roots=ROOTS))
    monkeypatch.setattr(command, "time", SimpleNamespace(time=clock))

    def verify(bundle: EvidenceBundle, policy: Policy | None, **options: Any) -> VerifiedBundle:
        return verify_bundle(bundle, policy, **options | {"roots": ROOTS})

    monkeypatch.setattr(command, "verify_bundle", verify)


@pytest.fixture(scope="module")
def genuine() -> Iterator[Stack]:
    """A server whose reports verify."""
    with genuine_stack() as running:
        running.backend.play(json_answer(RESPONSE))
        yield running


@pytest.fixture(scope="module")
def development() -> Iterator[Stack]:
    """A server in development mode."""
    with stack() as running:
        running.backend.play(json_answer(RESPONSE))
        yield running


@pytest.fixture
def collateral(tmp_path: Path) -> Path:
    """A file with collateral."""
    return write(tmp_path / "collateral.json", json.dumps(COLLATERAL))


@pytest.fixture
def unsafe(tmp_path: Path) -> Path:
    """A file with a policy that accepts simulated reports."""
    return write(tmp_path / "unsafe.json", UNSAFE)


def write(path: Path, text: str) -> Path:
    """Write a file and return its path."""
    path.write_text(text)
    return path


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_a_server_is_verified(genuine: Stack, collateral: Path, algorithm: Any) -> None:
    """Every step is ticked with its value, and what nobody has established is said."""
    result = run(url_of(genuine), "--collateral", collateral, "--algorithm", algorithm)
    assert result.exit_code == 0
    assert marks(result) == [("✓", name) for name in NAMES]
    for expected in (fixed_pair().identity(algorithm).address, "UpToDate", "pins NOTHING", "weights", "method, path"):
        assert expected in result.output
    assert "older one" not in result.output  # a random word was asked with
    assert "PROVES NOTHING" not in result.output


@pytest.mark.usefixtures("trusting")
def test_collateral_is_fetched_from_where_it_is_said(genuine: Stack) -> None:
    """A cache of Intel's service will do; and an address with /v1 is as good as one without."""
    with pccs() as service:
        assert run(f"{url_of(genuine)}/v1/", "--pccs", service.url).exit_code == 0


@pytest.mark.usefixtures("trusting")
def test_machines_get_one_object(genuine: Stack, collateral: Path) -> None:
    """With every step, what was verified, and what was not."""
    result = run(url_of(genuine), "--collateral", collateral, "--json")
    found = json.loads(result.output)
    assert (result.exit_code, found["verified"], found["simulated"], found["error"]) == (0, True, False, None)
    assert [(step["number"], step["name"], step["state"]) for step in found["steps"]] == [
        (number, name, "passed") for number, name in enumerate(NAMES, 1)
    ]
    assert all(step["value"] and step["establishes"] for step in found["steps"])
    assert found["signing_address"] == fixed_pair().identity("ecdsa").address
    assert (found["pinned"], found["policy"]["policy"]) == ([], "Policy")


@pytest.mark.usefixtures("trusting")
def test_what_was_kept_is_verified_again(genuine: Stack, collateral: Path, tmp_path: Path) -> None:
    """The bundle verifies without the server, and not when it was edited."""
    kept = tmp_path / "bundle.json"
    live = run(url_of(genuine), "--collateral", collateral, "--bundle", kept)
    again = run("--offline", kept)
    assert (live.exit_code, again.exit_code) == (0, 0)
    assert marks(live) == marks(again) == [("✓", name) for name in NAMES]
    assert live.output.splitlines()[-1] == again.output.splitlines()[-1]  # the file, and its digest
    assert "bundle's own" in again.output
    kept.write_text(kept.read_text().replace('"test/model"', '"best/model"'))
    edited = run("--offline", kept)
    assert edited.exit_code == 1
    assert "(bundle_changed)" in edited.output
    assert marks(edited)[1:] == [("-", name) for name in NAMES]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "not_a_bundle"),
        ("[]", "not_a_bundle"),
        ("import json\n", "not_a_bundle"),
        ('{"format": "teesign-bundle-1", "verified_at": 1', "not_a_bundle"),
        (UNSAFE, "unknown_bundle_format"),
        ('{"format": "teesign-bundle-2"}', "unknown_bundle_format"),
    ],
)
def test_a_file_that_is_no_bundle_is_no_failed_check(tmp_path: Path, text: str, code: str) -> None:
    """A script must not take the wrong file for a forged answer; the verdict is there all the same."""
    file = write(tmp_path / "file", text)
    shown, found = run("--offline", file), run("--offline", file, "--json")
    assert (shown.exit_code, found.exit_code) == (2, 2)
    assert f"({code})" in shown.output
    assert (json.loads(found.output)["verified"], json.loads(found.output)["error"]["code"]) == (False, code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"format": "teesign-bundle-1"}', "bundle_changed"),
        ('{"format": "teesign-bundle-1", "nonce": 1, "nonce": 2}', "bad_bundle"),
        ('{"format": "teesign-bundle-1", "report": {"x": NaN}}', "bad_bundle"),
    ],
)
def test_a_bundle_that_cannot_be_right_is_a_failed_check(tmp_path: Path, text: str, code: str) -> None:
    """Whoever says that it is one has to bring one that verifies."""
    result = run("--offline", write(tmp_path / "file", text))
    assert result.exit_code == 1
    assert f"({code})" in result.output


@pytest.mark.usefixtures("trusting")
def test_a_kept_bundle_is_held_to_a_policy_of_ones_own(genuine: Stack, collateral: Path, tmp_path: Path) -> None:
    """A pin that the bundle's maker did not have."""
    kept = tmp_path / "bundle.json"
    assert run(url_of(genuine), "--collateral", collateral, "--bundle", kept).exit_code == 0
    policy = write(tmp_path / "policy.json", json.dumps({"mr_td": ["11" * 48]}))
    result = run("--offline", kept, "--policy", policy)
    assert result.exit_code == 1
    assert ("✗", "software") in marks(result)


def test_a_server_in_development_mode_fails(development: Stack) -> None:
    """With what that means, and the way to try it all the same; and no prompt is sent."""
    calls = len(development.backend.calls)
    result = run(url_of(development), "--prompt", "kanarienvogel")
    assert result.exit_code == 1
    assert marks(result) == [("✗", "report"), *(("-", name) for name in NAMES[1:])]
    assert "development mode" in result.output
    assert UNSAFE in " ".join(result.output.split())
    assert len(development.backend.calls) == calls


def test_an_unsafe_policy_accepts_it_loudly(development: Stack, unsafe: Path, tmp_path: Path) -> None:
    """It passes, with what was skipped shown as such; the bundle needs the same policy again."""
    kept = tmp_path / "bundle.json"
    result = run(url_of(development), "--policy", unsafe, "--bundle", kept)
    assert result.exit_code == 0
    skipped = {"signature", "gpus"}
    assert marks(result) == [("-" if name in skipped else "✓", name) for name in NAMES]
    assert "THIS PROVES NOTHING ABOUT ANY MACHINE" in result.output
    refused = run("--offline", kept)
    assert refused.exit_code == 1
    assert "(unsafe_policy)" in refused.output
    accepted = run("--offline", kept, "--policy", unsafe, "--json")
    found = json.loads(accepted.output)
    assert (accepted.exit_code, found["verified"], found["simulated"]) == (0, True, True)
    assert found["policy"] == policy_members(UnsafeSimulatedPolicy())


@pytest.fixture
def tampering() -> Iterator[int]:
    """The port of a genuine server behind somebody who changes the last byte of each chat's answer."""
    with Backend() as backend:
        sources = Sources(quotes=GenuineQuotes(), gpus=GenuineGpus())
        app = App(settings_for(backend.url, dev=False), pair=fixed_pair(), sources=sources)
        backend.play(json_answer(RESPONSE))

        async def tampered(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_changed(message: Message) -> None:
                if scope.get("path") == "/v1/chat/completions" and message.get("body"):
                    message = {**message, "body": message["body"][:-1] + b" "}
                await send(message)

            await app(scope, receive, send_changed if scope["type"] == "http" else send)

        with serve(tampered, "uvicorn") as port:
            yield port


@pytest.mark.usefixtures("trusting")
def test_a_changed_answer_is_found(tampering: int, collateral: Path, tmp_path: Path) -> None:
    """The attestation passes, the answer does not, and no evidence is kept of what failed."""
    kept = tmp_path / "bundle.json"
    result = run(f"http://127.0.0.1:{tampering}", "--collateral", collateral, "--bundle", kept, "--json")
    found = json.loads(result.output)
    assert (result.exit_code, found["verified"]) == (1, False)
    assert (found["error"]["code"], found["error"]["step"]) == ("response_hash_mismatch", "response hash")
    assert "changed on its way" in found["error"]["means"]
    assert [step["state"] for step in found["steps"]] == ["passed"] * 10 + ["failed"] + ["not reached"] * 2
    assert not kept.exists()


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("length", [257, 1_000_000])
def test_an_endless_id_is_the_servers_fault(genuine: Stack, collateral: Path, length: int) -> None:
    """Not that of the command or its files; the library would find no URL in it."""
    with middle_man(genuine.client.port) as middle:
        body = json.dumps({"id": "a" * length}).encode()
        middle.on_response = at(CHAT, lambda message: replace(message, headers={}, body=body))
        result = run(middle.url, "--collateral", collateral)
    assert result.exit_code == 1
    assert "(signature_missing)" in result.output


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (TOKEN, 0),
        (f" {TOKEN}\n", 0),
        (f"{SECOND_TOKEN},{TOKEN}", 0),
        ("kanarienvogel", 2),
        ("", 2),
        ("a b", 2),
        ("\x07", 2),
    ],
)
def test_the_token_comes_from_a_file_or_the_environment(
    development: Stack, unsafe: Path, tmp_path: Path, text: str, code: int
) -> None:
    """Never from the command line, and it is not shown, right or wrong."""
    file = write(tmp_path / "token", text)
    for result in (
        run(url_of(development), "--policy", unsafe, "--token-file", file, TOKEN="another"),
        run(url_of(development), "--policy", unsafe, TOKEN=text),
    ):
        assert result.exit_code == code
        assert "token" in result.output or code == 0
        for secret in (TOKEN, SECOND_TOKEN, "kanarienvogel"):
            assert secret not in result.output


def test_a_missing_token_is_asked_for(development: Stack) -> None:
    """The server says that it wants one, and the command says how to give it."""
    result = run(url_of(development), TOKEN=None)
    assert result.exit_code == 2
    assert "answered 401" in result.output
    assert "--token-file" in result.output


def test_a_server_that_cannot_be_reached_is_no_failed_check() -> None:
    """Nobody listens: nothing is known, and the reason is said."""
    for options in ((), ("--json",)):
        result = run(f"http://127.0.0.1:{free_port()}", *options)
        assert result.exit_code == 3
        assert "unreachable" in result.output
        assert "not reached" in result.output


def test_the_systems_reason_is_shown() -> None:
    """A refused connection is looked for in another place than a name that nobody knows."""
    assert "(unreachable: [Errno " in run(f"http://127.0.0.1:{free_port()}").output


def repeats(start: bytes, name: bytes) -> Script:
    """Return a script that begins its answer in this way, and goes on with a header of the request."""
    return lambda call: call.send(start, call.header(name) or b"", b"\r\n\r\n")


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_a_token_that_a_server_repeats_is_not_shown(start: bytes, options: tuple[str, ...]) -> None:
    """Where there should be a status line or a header: the library's message has all of it."""
    with Backend() as server:
        server.play(repeats(start, b"authorization"))
        result = run(server.url, *options)
    assert result.exit_code == 3
    assert options or "(unreachable: RemoteProtocolError)" in result.output
    assert TOKEN not in result.output


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_proxys_password_that_it_repeats_is_not_shown(options: tuple[str, ...]) -> None:
    """Neither is anything else that a proxy says when it refuses; that it is the proxy is."""
    with Backend() as proxy:
        proxy.play(repeats(b"HTTP/1.1 407 ", b"proxy-authorization"))
        address = proxy.url.replace("://", "://user:kanarienvogel@")
        result = run("https://example.invalid", *options, HTTPS_PROXY=address, https_proxy=None, NO_PROXY=None)
    assert result.exit_code == 3
    assert "through a proxy, which refused" in result.output
    assert b64encode(b"user:kanarienvogel").decode() not in result.output


@pytest.mark.parametrize(
    ("status", "body", "code"), [(503, b"{}", "bad_status"), (404, b"", "bad_status"), (200, b"<html>", "bad_answer")]
)
def test_a_server_that_has_no_report_cannot_be_verified(status: int, body: bytes, code: str) -> None:
    """It is in trouble, or is none of this family."""
    with Backend() as server:
        server.play(answer(status, body))
        result = run(server.url)
    assert result.exit_code == 3
    assert f"({code})" in result.output


@pytest.mark.parametrize("part", ["tcb_info_signature", "qe_identity_signature"])
def test_a_service_without_collateral_is_no_mistake_of_the_users(genuine: Stack, part: str) -> None:
    """What it sends is no file of theirs, and no failed check either."""
    with pccs({**COLLATERAL, part: "zz"}) as service:
        result = run(url_of(genuine), "--pccs", service.url)
    assert result.exit_code == 3
    assert "(bad_answer)" in result.output


@pytest.mark.parametrize("status", [401, 403])
def test_a_service_that_refuses_does_not_want_the_token(genuine: Stack, status: int) -> None:
    """The server has taken it, and the service never gets it."""
    with Backend() as service:
        service.play(answer(status, b""))
        result = run(url_of(genuine), "--pccs", service.url)
    assert result.exit_code == 3
    assert f"answered {status}. (bad_status)" in result.output
    assert "token" not in result.output


def test_a_service_with_a_certificate_of_ones_own_authority_is_no_word_about_the_server(
    genuine: Stack, tmp_path: Path
) -> None:
    """The server was reached: it is the one that was asked whose certificate is not believed."""
    with pccs() as service, tls_front(urlsplit(service.url).port or 0, tmp_path, "own") as port:
        result = run(url_of(genuine), "--pccs", f"https://127.0.0.1:{port}")
    assert result.exit_code == 3
    assert f"Intel's collateral from 127.0.0.1:{port}. (unreachable: [SSL" in result.output
    output = " ".join(result.output.split())
    assert "SSL_CERT_FILE" in output
    assert "about the server" not in output


def says_nothing(call: Call) -> None:
    """Wait; who gives up may leave the connection to end by itself."""
    call.connection.gone.wait(5)


def test_a_server_that_says_nothing_is_given_up() -> None:
    """After the time that it was given."""
    with Backend() as server:
        server.play(says_nothing)
        result = run(server.url, "--timeout", "0.2")
    assert result.exit_code == 3
    assert "(timeout)" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either the URL"),
        (["http://localhost", "--offline", "{good}"], "either the URL"),
        (["--offline", "{good}", "--model", "m", "--token-file", "{good}"], "not with --token-file, --model"),
        (["--offline", "{missing}"], "does not exist"),
        (["--offline", "{folder}"], "is a directory"),
        (["localhost:8000"], "must be like https://"),
        (["ftp://localhost"], "must be like https://"),
        (["http://"], "must be like https://"),
        (["http://localhost?x=1"], "must be like https://"),
        (["http://[::1"], "must be like https://"),
        (["http://localhost:99999"], "must be like https://"),
        (["http://localhost/\x01"], "(bad_url)"),
        (["http://localhost", "--model", "\udcff"], "model's name cannot be encoded"),
        (["http://localhost", "--prompt", "\udcff"], "(bad_prompt)"),
        (["http://localhost", "--pccs", "localhost"], "must be like https://"),
        (["http://user:kanarienvogel@localhost"], "no password"),
        (["http://localhost", "--policy", "{missing}"], "does not exist"),
        (["http://localhost", "--policy", "{bad}"], "policy is not a JSON object"),
        (["http://localhost", "--policy", "{misspelt}"], "known members"),
        (["http://localhost", "--collateral", "{misspelt}"], "collateral is not"),
        (["http://localhost", "--token-file", "{missing}"], "does not exist"),
        (["http://localhost", "--timeout", "0"], "range"),
        (["http://localhost", "--timeout", "inf"], "range"),
        (["http://localhost", "--timeout", "nan"], "must be a number"),
        (["http://localhost", "--algorithm", "rsa"], "ecdsa"),
        (["http://localhost", "--token", "kanarienvogel"], "No such option"),
    ],
)
def test_mistakes_are_usage_errors(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Each is named before anything is sent."""
    files = {"good": "{}", "bad": "[", "misspelt": '{"mrtd": []}'}
    paths = {name: str(write(tmp_path / name, text)) for name, text in files.items()}
    paths |= {"missing": str(tmp_path / "missing"), "folder": str(tmp_path)}
    result = run(*(argument.format(**paths) for argument in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "kanarienvogel" not in result.output


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HTTPS_PROXY", "nonsense://x:kanarienvogel@y", "environment's proxies cannot be used: Unknown scheme"),
        ("HTTP_PROXY", "http://x:kanarienvogel/1@y", "environment's proxies cannot be used: one is no URL"),
        ("SSL_CERT_FILE", "/nowhere", "certificates of SSL_CERT_FILE (/nowhere) cannot be used: [Errno 2] No"),
        ("SSL_CERT_FILE", __file__, f"certificates of SSL_CERT_FILE ({__file__}) cannot be used: "),
        ("SSL_CERT_DIR", "/nowhere", "certificates of SSL_CERT_DIR (/nowhere) cannot be used: [Errno 2] No"),
        ("SSL_CERT_DIR", "/nowhere:/nor/here", "SSL_CERT_DIR (/nowhere:/nor/here) cannot be used: [Errno 2] No"),
        ("SSL_CERT_DIR", __file__, f"certificates of SSL_CERT_DIR ({__file__}) cannot be used: [Errno 20] Not"),
    ],
)
def test_an_environment_that_cannot_be_used_is_said(name: str, value: str, message: str) -> None:
    """It is nothing that the server did. The file or folder is named, and a proxy's password is not."""
    result = run("http://localhost", **{"SSL_CERT_FILE": None, name: value})
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "kanarienvogel" not in result.output


@pytest.mark.parametrize("folders", ["{tmp_path}", "/nowhere:{tmp_path}"])
def test_one_folder_with_certificates_is_enough(tmp_path: Path, folders: str) -> None:
    """As for OpenSSL, which passes over those that are missing; and a file takes precedence over all."""
    with Backend() as server:
        server.play(answer(404, b""))
        folder = folders.format(tmp_path=tmp_path)
        assert run(server.url, SSL_CERT_DIR=folder, SSL_CERT_FILE=None).exit_code == 3
        assert run(server.url, SSL_CERT_DIR="/nowhere", SSL_CERT_FILE=certifi.where()).exit_code == 3


def test_a_server_with_a_certificate_of_ones_own_authority(development: Stack, tmp_path: Path) -> None:
    """It runs, at the right address: what has to be said is whose certificates are believed."""
    with tls_front(development.client.port, tmp_path, "own") as port:
        result = run(f"https://127.0.0.1:{port}")
    assert result.exit_code == 3
    assert "(unreachable: [SSL: CERTIFICATE_VERIFY_FAILED]" in result.output
    assert "SSL_CERT_FILE" in result.output
    assert "does it run?" not in result.output


def test_a_policy_that_binds_the_tls_key_takes_https(tmp_path: Path) -> None:
    """An address without it is refused before anything is sent."""
    policy = write(tmp_path / "policy.json", '{"require_tls_key": true}')
    with Backend() as server:
        result = run(server.url, "--policy", policy)
        assert server.connections == 0
    assert result.exit_code == 1
    assert "(tls_key_missing)" in result.output
    assert "https" in result.output


def test_a_policy_that_binds_the_tls_key_takes_a_server_that_does(
    development: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without a certificate of its own fails the policy, and nobody is told to try again."""
    monkeypatch.setattr(command, "_client", lambda: httpx.Client(verify=False))
    policy = write(tmp_path / "policy.json", '{"require_tls_key": true}')
    with tls_front(development.client.port, tmp_path, "own") as port:
        result = run(f"https://127.0.0.1:{port}", "--policy", policy)
    assert result.exit_code == 1
    assert "(tls_key_not_bound)" in result.output
    assert "operator has to set TLS_CERT_PATH" in " ".join(result.output.split())
    assert "try again" not in result.output


def test_a_front_with_another_tls_key_is_no_forged_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer that ends TLS, or a renewed certificate: who can read along is said, and what to look for."""
    monkeypatch.setattr(command, "_client", lambda: httpx.Client(verify=False))
    policy = write(tmp_path / "policy.json", '{"policy": "UnsafeSimulatedPolicy", "require_tls_key": true}')
    own = tmp_path / "own.pem"
    own.write_bytes(Authority("own", ca=False).pem)
    with stack(tls_cert_path=own) as running, tls_front(running.client.port, tmp_path, "other") as port:
        result = run(f"https://127.0.0.1:{port}", "--policy", policy)
        assert not running.backend.calls
    assert result.exit_code == 1
    assert marks(result)[4] == ("✗", "report data")
    output = " ".join(result.output.split())
    for expected in ("(tls_key_mismatch)", "read along", "proxy", "renewed", "TLS_CERT_PATH"):
        assert expected in output
    assert "passes off" not in output


def test_whoever_interrupts_has_not_seen_a_check_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is that of other interrupted programs."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupt)
    assert run("http://localhost").exit_code == 130


def test_what_is_unexpected_is_no_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has an exit code of its own, and shows where it happened."""

    def stumble(*_: object) -> None:
        raise RuntimeError("kanarienvogel")

    monkeypatch.setattr(command, "run", stumble)
    result = run("http://localhost")
    assert result.exit_code == 4
    assert "kanarienvogel" in result.output


@pytest.fixture
def offline(development: Stack, unsafe: Path, tmp_path: Path) -> list[str]:
    """A command that verifies evidence, as a process."""
    kept = tmp_path / "bundle.json"
    assert run(url_of(development), "--policy", unsafe, "--bundle", kept).exit_code == 0
    return [sys.executable, "-m", "teesign_asgi", "verify", "--offline", str(kept), "--policy", str(unsafe)]


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", "✓"), ("latin-1", "+"), ("ascii", "+")])
def test_an_output_without_the_marks_gets_plain_ones(offline: list[str], encoding: str, mark: str) -> None:
    """What verifies does so on every terminal, and looks other than what does not."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run(offline, env=environment, capture_output=True, check=True)
    assert f"{mark}  1 report" in result.stdout.decode(encoding)


def test_a_letter_that_an_output_does_not_have_is_replaced(tmp_path: Path) -> None:
    """A name must not keep a verdict from being shown."""
    file = write(tmp_path / "Ελένη.json", "{}")
    command = [sys.executable, "-m", "teesign_asgi", "verify", "--offline", str(file)]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (2, b"")
    assert b"?????.json" in result.stdout
    assert b"\nx  " in result.stdout


@pytest.mark.parametrize("json_", [(), ("--json",)])
@pytest.mark.parametrize("both", [False, True])
def test_a_verdict_that_cannot_be_written_has_an_exit_code_of_its_own(
    offline: list[str],
    both: bool,  # noqa: FBT001 - a column
    json_: tuple[str, ...],
) -> None:
    """Whoever reads the code alone must not take a full disk for evidence that does not verify, or that does."""
    with Path("/dev/full").open("wb") as full:
        errors = subprocess.STDOUT if both else subprocess.PIPE
        result = subprocess.run([*offline, *json_], stdout=full, stderr=errors, check=False)
    assert result.returncode == 4
    assert both or result.stderr == b"Error: The verdict cannot be written: No space left on device.\n"


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", ">/dev/full 2>&-"])
@pytest.mark.parametrize("json_", [(), ("--json",)])
def test_a_verdict_that_nobody_can_read_has_the_same_exit_code(
    offline: list[str], json_: tuple[str, ...], closed: str
) -> None:
    """A program that starts with an output closed has none: it would write to nowhere, or stumble."""
    command = f'exec "$@" {closed}'
    result = subprocess.run(["/bin/sh", "-c", command, "sh", *offline, *json_], stderr=subprocess.PIPE, check=False)
    assert result.returncode == 4
    assert result.stderr == (b"" if "2" in closed else b"Error: The verdict cannot be written: Bad file descriptor.\n")


def test_a_reader_who_leaves_learns_nothing_from_the_exit_code(offline: list[str]) -> None:
    """As `head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(offline, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert result.returncode == 4


def test_evidence_that_cannot_be_kept_is_said(development: Stack, unsafe: Path, tmp_path: Path) -> None:
    """Who wants a file and gets none must not read that all is well."""
    result = run(url_of(development), "--policy", unsafe, "--bundle", tmp_path / "no" / "folder")
    assert result.exit_code == 2
    assert "(bundle_not_written)" in result.output
    assert "Not verified." in result.output


SERVERS_PACKAGES = ("granian", "structlog", "anyio", "httpcore", "h11", "httptools", "prometheus_client")


def test_files_are_verified_with_the_far_ends_packages_alone(development: Stack, unsafe: Path, tmp_path: Path) -> None:
    """Neither the server nor a client has to be installed; for a live server, what is missing is named."""
    kept, missing = tmp_path / "bundle.json", (*SERVERS_PACKAGES, "httpx", "httpx2", "starlette")
    assert run(url_of(development), "--policy", unsafe, "--bundle", kept).exit_code == 0
    again = run_without(missing, "verify", "--offline", str(kept), "--policy", str(unsafe))
    assert (again.returncode, again.stderr) == (0, "")
    live = run_without(missing, "verify", url_of(development))
    assert live.returncode == 2
    assert "pip install 'teesign[client]'" in live.stderr


def test_what_a_server_writes_does_not_reach_the_terminal_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A name may hold commands for terminals."""
    Verdict("\x1b[2J", as_json=False).passed(Passed(1, "report", "x", "a\x1b]0;b\r\nc"))
    shown = capsys.readouterr().out
    assert "\N{REPLACEMENT CHARACTER}[2J" in shown
    assert "a\N{REPLACEMENT CHARACTER}]0;b\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}c\n" in shown


def raised_codes() -> set[str]:
    """Return the code of every failed check that the library can raise."""
    root, found = Path(__file__).parents[1] / "src" / "teesign", set()
    kinds = ("VerificationError", "MalformedError", "FetchError")
    modules = [*(root / "verify").glob("*.py"), *(root / "client").glob("*.py"), root / "quote.py", root / "signing.py"]
    for node in (node for path in modules for node in ast.walk(ast.parse(path.read_bytes()))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in kinds:
            codes = [word.value for word in node.keywords if word.arg == "code"]
            found |= {str(code.value) for code in codes if isinstance(code, ast.Constant)}
    return found


def test_every_failure_has_a_meaning() -> None:
    """Whatever the library can find, the command can explain."""
    composed = {f"{name}_hash_mismatch" for name in ("request", "response")} | {
        f"{name}_mismatch" for name in ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "compose_hash")
    }
    intels = {"tcb_unknown", "collateral_expired", "certificate_revoked", "quote_not_verified"}
    codes = raised_codes() | composed | intels
    assert len(codes) > 40
    assert {code for code in codes if not meaning_of(code)} == set()


def test_the_command_exits_as_a_process_does(tmp_path: Path) -> None:
    """The exit code reaches the shell."""
    file = write(tmp_path / "bundle", '{"format": "teesign-bundle-1"}')
    process = [sys.executable, "-m", "teesign_asgi", "verify", "--offline", str(file)]
    result = subprocess.run(process, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "bundle_changed" in result.stdout
    assert result.stderr == ""


HINTS = b"HTTP/1.1 103 Early Hints\r\n\r\n"


def hints(call: Call) -> None:
    """Say again and again that the answer is about to come, for longer than a test waits."""
    for _ in range(200):
        if call.connection.gone.wait(0.05):
            return
        call.send(HINTS)
    call.close()


AS_IN_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background inherits that it is ignored

from teesign_asgi.cli import teesign
teesign()
"""


@pytest.mark.parametrize(("timeout", "interrupted", "code"), [("1", False, 3), ("60", True, 130)])
def test_a_server_cannot_keep_the_command(timeout: str, interrupted: bool, code: int) -> None:  # noqa: FBT001 - a column
    """It ends in its time, or when it is told to, and waits for nothing more; an interruption is no failed check."""
    with Backend() as server:
        server.play(hints)
        arguments = ["verify", server.url, "--timeout", timeout]
        process = subprocess.Popen(
            [sys.executable, "-c", AS_IN_A_TERMINAL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        # Where it has not come to ask by the end of its time, it has ended without.
        wait_until(lambda: server.calls or process.poll() is not None, 60)
        begun = time.monotonic()
        if interrupted:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == code
        assert time.monotonic() - begun < 5
