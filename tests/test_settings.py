"""Settings from environment variables: every variable's values, and what is said about those that do not work."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from authorities import Authority
from hypothesis import given
from hypothesis import strategies as st

from teesign_asgi import Settings, SettingsError
from teesign_asgi.settings import VARIABLES, worker_environment

REQUIRED = {"MODEL_NAME": "some/model", "TOKEN": "a-token"}
CANARY = "kanarienvogel"

# The contract's table: each variable, the field that holds it, and its default.
DEFAULTS: list[tuple[str, str, object]] = [
    ("VLLM_BASE_URL", "backend_url", "http://localhost:8000"),
    ("DEV", "dev", False),
    ("GPU_NO_HW_MODE", "gpu_no_hw_mode", False),
    ("CHAT_CACHE_EXPIRATION", "signature_ttl", 1200),
    ("VLLM_PROXY_MAX_REQUEST_SIZE", "max_request_bytes", 10485760),
    ("VLLM_PROXY_MAX_IMAGE_REQUEST_SIZE", "max_image_request_bytes", 52428800),
    ("VLLM_PROXY_MAX_AUDIO_REQUEST_SIZE", "max_audio_request_bytes", 104857600),
    ("VLLM_PROXY_MAX_KEEPALIVE", "max_keepalive", 100),
    ("LISTEN_PORT", "listen_port", 8000),
    ("LISTEN_HOST", "listen_host", "0.0.0.0"),
    ("VLLM_IMAGES_URL", "images_url", None),
    ("VLLM_IMAGES_EDITS_URL", "images_edits_url", None),
    ("VLLM_TRANSCRIPTIONS_URL", "transcriptions_url", None),
    ("VLLM_RERANK_URL", "rerank_url", None),
    ("VLLM_SCORE_URL", "score_url", None),
    ("VLLM_PROXY_TIMEOUT_SECS", "backend_timeout", 600),
    ("CLIENT_BODY_TIMEOUT", "client_body_timeout", 30),
    ("CLIENT_WRITE_TIMEOUT", "client_write_timeout", 60),
    ("RATE_LIMIT_PER_SECOND", "rate_limit_per_second", 100),
    ("RATE_LIMIT_BURST_SIZE", "rate_limit_burst", 200),
    ("TRUSTED_PROXY_HOPS", "trusted_proxy_hops", 0),
    ("SIGNATURE_CACHE_MAX_ENTRIES", "signature_cache_max_entries", 1000000),
    ("ATTESTATION_CACHE_TTL", "attestation_cache_ttl", 300),
    ("PUBLIC_ATTESTATION", "public_attestation", False),
    ("TRUST_REQUEST_HASH", "trust_request_hash", False),
    ("ALLOW_BACKEND_ADMIN", "allow_backend_admin", False),
    ("SIGNED_TEXT", "signed_text", "v1"),
    ("TLS_CERT_PATH", "tls_cert_path", None),
    ("GPU_EVIDENCE_PYTHON", "gpu_evidence_python", None),
    ("GPU_EVIDENCE_COMMAND", "gpu_evidence_command", None),
    ("DSTACK_SIMULATOR_ENDPOINT", "dstack_simulator_endpoint", None),
    ("DRAIN_DELAY", "drain_delay", 0),
    ("DRAIN_TIMEOUT", "drain_timeout", 30),
    ("DRAIN_LINGER", "drain_linger", 5),
    ("LOG_FORMAT", "log_format", "text"),
    ("LOG_LEVEL", "log_level", "info"),
]

PROGRAMS = ("GPU_EVIDENCE_PYTHON", "GPU_EVIDENCE_COMMAND")
TEXTS = ("MODEL_NAME", "LISTEN_HOST", "DSTACK_SIMULATOR_ENDPOINT")
BOOLEANS = ("DEV", "GPU_NO_HW_MODE", "PUBLIC_ATTESTATION", "TRUST_REQUEST_HASH", "ALLOW_BACKEND_ADMIN")
DRAIN = ("DRAIN_DELAY", "DRAIN_TIMEOUT", "DRAIN_LINGER")
CLIENT = ("CLIENT_BODY_TIMEOUT", "CLIENT_WRITE_TIMEOUT")
SECONDS = ("CHAT_CACHE_EXPIRATION", "VLLM_PROXY_TIMEOUT_SECS", "ATTESTATION_CACHE_TTL", *CLIENT, *DRAIN)
URLS = (
    "VLLM_BASE_URL",
    "VLLM_IMAGES_URL",
    "VLLM_IMAGES_EDITS_URL",
    "VLLM_TRANSCRIPTIONS_URL",
    "VLLM_RERANK_URL",
    "VLLM_SCORE_URL",
)
POSITIVE = (
    "VLLM_PROXY_MAX_REQUEST_SIZE",
    "VLLM_PROXY_MAX_IMAGE_REQUEST_SIZE",
    "VLLM_PROXY_MAX_AUDIO_REQUEST_SIZE",
    "LISTEN_PORT",
    "RATE_LIMIT_PER_SECOND",
    "RATE_LIMIT_BURST_SIZE",
    "SIGNATURE_CACHE_MAX_ENTRIES",
)
FROM_ZERO = ("VLLM_PROXY_MAX_KEEPALIVE", "TRUSTED_PROXY_HOPS")

GOOD: list[tuple[str, str, object]] = [
    *((name, " Qwen/Qwen3-8B ", "Qwen/Qwen3-8B") for name in TEXTS),
    *((name, text, text.strip()) for name in PROGRAMS for text in (sys.executable, " sh ")),
    ("GPU_EVIDENCE_COMMAND", "sh -c 'two words'", "sh -c 'two words'"),
    ("TOKEN", "one", ("one",)),
    ("TOKEN", " one, two ,,three,", ("one", "two", "three")),
    *((name, text, True) for name in BOOLEANS for text in ("1", "true", "yes", "on", "TRUE", " On ")),
    *((name, text, False) for name in BOOLEANS for text in ("0", "false", "no", "off", "FALSE", "nO")),
    *((name, "2.5", 2.5) for name in SECONDS),
    *((name, "1e3", 1000.0) for name in SECONDS),
    *((name, "86400", 86400.0) for name in SECONDS),
    *((name, " 0.1 ", 0.1) for name in SECONDS),
    *((name, "0", 0.0) for name in ("ATTESTATION_CACHE_TTL", *DRAIN)),
    *((name, "1", 1) for name in POSITIVE),
    *((name, " 12 ", 12) for name in POSITIVE + FROM_ZERO),
    *((name, " " * 30 + "12", 12) for name in POSITIVE + FROM_ZERO),
    *((name, "0", 0) for name in FROM_ZERO),
    ("LISTEN_PORT", "65535", 65535),
    ("SIGNATURE_CACHE_MAX_ENTRIES", "9007199254740992", 2**53),
    ("VLLM_BASE_URL", " https://[::1]:9000/base/ ", "https://[::1]:9000/base"),
    *((name, " https://[::1]:9000/path/ ", "https://[::1]:9000/path/") for name in URLS[1:]),
    *(
        (name, text, text)
        for name in URLS
        for text in (
            "http://10.0.0.1",
            "http://my_service:9000",
            "http://-a-.svc.cluster.local.",
            "http://xn--bcher-kva.example",
            "http://" + ".".join(["a" * 63] * 3 + ["b" * 61]),
            "http://[fe80::1%eth0]:9000",
            "http://unix:9000",
            "http://unix",
        )
    ),
    ("DSTACK_SIMULATOR_ENDPOINT", "/run/dstack.sock", "/run/dstack.sock"),
    ("DSTACK_SIMULATOR_ENDPOINT", "http://localhost:8090/", "http://localhost:8090"),
    ("SIGNED_TEXT", "V2", "v2"),
    ("LOG_FORMAT", " JSON", "json"),
    *(("LOG_LEVEL", level, level) for level in ("debug", "info", "warning", "error")),
]

BAD: list[tuple[str, str, str]] = [
    *((name, "  ", "is empty") for name in TEXTS + PROGRAMS),
    *((name, "a\nb", "cannot be printed") for name in TEXTS + PROGRAMS),
    ("TOKEN", " , ,", "holds no token"),
    ("TOKEN", "one,two words", "no Authorization header can carry"),
    ("TOKEN", "schlüssel", "no Authorization header can carry"),
    ("TOKEN", "a\x7fb", "no Authorization header can carry"),
    *((name, text, "is not a boolean") for name in BOOLEANS for text in ("2", "ja", " ", "truefalse")),
    *((name, text, "is not a number of seconds") for name in SECONDS for text in ("ten", "10s", " ", "1_0", "٣")),
    *((name, text, "is not a positive number") for name in SECONDS for text in ("-1", "nan", "inf", "1e400")),
    *(
        (name, "0", "is not a positive number")
        for name in ("CHAT_CACHE_EXPIRATION", "VLLM_PROXY_TIMEOUT_SECS", *CLIENT)
    ),
    *(
        (name, text, "is less than 0.1")
        for name in ("CHAT_CACHE_EXPIRATION", "VLLM_PROXY_TIMEOUT_SECS", *CLIENT)
        for text in ("0.09", "1e-300")
    ),
    *((name, "86401", "is more than 86400") for name in (*CLIENT, *DRAIN)),
    *(
        (name, text, "is not a whole number")
        for name in POSITIVE + FROM_ZERO
        for text in ("-1", "1.0", "1_000", "ten", "٣", "²", " ")
    ),
    *((name, "0", "is less than 1") for name in POSITIVE),
    *((name, "9" * 100, "is more than") for name in POSITIVE + FROM_ZERO),
    ("LISTEN_PORT", "65536", "is more than 65535"),
    ("TRUSTED_PROXY_HOPS", "101", "is more than 100"),
    ("SIGNATURE_CACHE_MAX_ENTRIES", "9007199254740993", "is more than 9007199254740992"),
    *(
        (name, text, "is not an http or https URL")
        for name in URLS
        for text in (
            "localhost:8000",
            "ftp://host",
            "http:host",
            "http://a b",
            "http://hÖst",
            "http://[::1",
            "http://host:port",
            "http://host:65536",
            "http://host/\n/",
            "http://host/\x00",
        )
    ),
    *(
        (name, text, "has a host that is neither a name nor an address")
        for name in URLS
        for text in (
            "http://h\\x",
            "http://a..b",
            "http://.",
            "http://.a",
            "http://a..",
            "http://ex%20ample",
            "http://a,b",
            "http://" + "a" * 64 + ".example",
            "http://" + "a." * 127 + "ab",
        )
    ),
    *((name, text, "has port 0") for name in URLS for text in ("http://h:0", "https://[::1]:00/path")),
    *(
        (name, text, "names a Unix socket, and backends are reached over TCP only")
        for name in URLS
        for text in ("unix:/tmp/x.sock", "unix:///tmp/x.sock", "http://unix:/tmp/x.sock", "http+unix://%2Ftmp%2Fx.sock")
    ),
    *((name, "http://host/?a=b", "has a query") for name in URLS),
    *((name, "http://host/#a", "has a query or a fragment") for name in URLS),
    *((name, "http://user:secret@host/", "holds a user name") for name in URLS),
    *((name, "http:///path", "has no host") for name in URLS),
    *((name, "http://:80", "has no host") for name in URLS),
    ("DSTACK_SIMULATOR_ENDPOINT", "http://user:secret@host", "holds a user name"),
    *(
        ("DSTACK_SIMULATOR_ENDPOINT", text, "is neither the path of a Unix socket by itself nor an http or https URL")
        for text in ("ftp://host", "unix:///run/a", "unix:/run/a", "http://unix:/run/a", "HTTP://host")
    ),
    ("DSTACK_SIMULATOR_ENDPOINT", "http://a..b", "neither a name nor an address"),
    ("DSTACK_SIMULATOR_ENDPOINT", "/run/a\0b", "cannot be printed"),
    ("GPU_EVIDENCE_COMMAND", "python 'worker.py", "is no command line"),
    ("GPU_EVIDENCE_COMMAND", "python \\", "is no command line"),
    ("GPU_EVIDENCE_COMMAND", "'' worker.py", "names no program"),
    *((name, "/nowhere/python", "names a program that is not there") for name in PROGRAMS),
    *((name, "nowhere/python", "names a program that is not there") for name in PROGRAMS),
    *((name, "/", "names a directory") for name in PROGRAMS),
    *((name, __file__, "names a file that may not be executed") for name in PROGRAMS),
    *((name, "no-such-python", "names a program that is in no directory of PATH") for name in PROGRAMS),
    ("GPU_EVIDENCE_PYTHON", "sh -c x", "names a program that is in no directory of PATH"),
    ("SIGNED_TEXT", "v3", "is none of v1, v2"),
    ("LOG_FORMAT", "xml", "is none of text, json"),
    ("LOG_LEVEL", "loud", "is none of debug, info, warning, error"),
    ("TLS_CERT_PATH", "/nonexistent/cert.pem", "cannot be read (FileNotFoundError)"),
    ("TLS_CERT_PATH", "/", "cannot be read (IsADirectoryError)"),
    ("TLS_CERT_PATH", "a\0b", "is no path of a file"),
]


def field_of(variable: str) -> str:
    """Return the name of the field that a variable sets."""
    return next(name for name, candidate in VARIABLES.items() if candidate.name == variable)


def problems_of(mapping: dict[str, str]) -> tuple[str, ...]:
    """Return what is wrong with these variables."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping(mapping)
    return caught.value.problems


@pytest.mark.parametrize(("variable", "field", "default"), DEFAULTS)
def test_variables_have_the_defaults_of_the_contract(variable: str, field: str, default: object) -> None:
    """What is not set has the value that the contract's table gives."""
    assert field_of(variable) == field
    assert getattr(Settings.from_mapping(REQUIRED), field) == default


def test_every_field_has_a_variable() -> None:
    """In the same order, so that none can be given as a keyword without being checked."""
    assert list(VARIABLES) == [field.name for field in fields(Settings)]


def test_the_table_above_is_complete() -> None:
    """Every variable is required or has a default in it."""
    assert {variable.name for variable in VARIABLES.values()} == {*REQUIRED, *(name for name, _, _ in DEFAULTS)}


@pytest.mark.parametrize(("variable", "text", "value"), GOOD)
def test_good_values_are_read(variable: str, text: str, value: object) -> None:
    """White space around a value does not matter, nor does the case of booleans and choices."""
    read = getattr(Settings.from_mapping({**REQUIRED, variable: text}), field_of(variable))
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(("variable", "text", "complaint"), BAD)
def test_bad_values_are_refused_with_the_reason_and_an_example(variable: str, text: str, complaint: str) -> None:
    """Never replaced by the default; the message names the variable, and shows a value that works."""
    (problem,) = problems_of({**REQUIRED, variable: text})
    assert problem.startswith(f"{variable} ")
    assert complaint in problem
    assert problem.endswith(f". Example: {variable}={VARIABLES[field_of(variable)].example}")


@pytest.mark.parametrize("variable", [name for name in VARIABLES if name != "tls_cert_path"])
def test_the_examples_in_messages_work(variable: str) -> None:
    """What an operator is told to write can be read; of programs only where they need not be there."""
    example = VARIABLES[variable].example
    Settings.from_mapping({**REQUIRED, "DEV": "1", VARIABLES[variable].name: example})


@pytest.mark.parametrize("variable", PROGRAMS)
@pytest.mark.parametrize("mode", ["DEV", "GPU_NO_HW_MODE"])
def test_a_program_need_not_be_there_where_evidence_is_simulated_without_it(variable: str, mode: str) -> None:
    """A developer's machine starts with the configuration of another one."""
    settings = Settings.from_mapping({**REQUIRED, mode: "1", variable: "/nowhere/python"})
    assert getattr(settings, field_of(variable)) == "/nowhere/python"


@pytest.mark.parametrize("variable", PROGRAMS)
def test_a_program_is_looked_for_once(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a variable holds is read in one pass: each look at the machine is made once."""
    which = Mock(return_value="/bin/sh")
    monkeypatch.setattr(shutil, "which", which)
    Settings.from_mapping({**REQUIRED, variable: "some-python"})
    which.assert_called_once_with("some-python")


def test_all_problems_are_reported_at_once() -> None:
    """One start is enough to see everything that has to be changed, in the order of the contract's table."""
    bad = {"DEV": "maybe", "LISTEN_PORT": "0", "GPU_EVIDENCE_PYTHON": "/nowhere/python", "LOG_LEVEL": "loud"}
    problems = problems_of(bad)
    assert [problem.split()[0] for problem in problems] == ["MODEL_NAME", "TOKEN", *bad]
    assert str(SettingsError(problems)).count("\n  - ") == len(problems)


@pytest.mark.parametrize("variable", REQUIRED)
@pytest.mark.parametrize("value", [None, ""])
def test_required_variables_must_be_set(variable: str, value: str | None) -> None:
    """To nothing counts as not at all."""
    mapping = {name: text for name, text in {**REQUIRED, variable: value}.items() if text is not None}
    (problem,) = problems_of(mapping)
    assert problem.startswith(f"{variable} is not set")


@pytest.mark.parametrize(("variable", "field", "default"), DEFAULTS)
def test_optional_variables_set_to_nothing_are_not_set(variable: str, field: str, default: object) -> None:
    """Compose files write VARIABLE= for what they leave out."""
    assert getattr(Settings.from_mapping({**REQUIRED, variable: ""}), field) == default


def test_other_variables_are_left_alone() -> None:
    """The environment is full of them."""
    assert Settings.from_mapping({**REQUIRED, "PATH": "/bin", "dev": "yes"}) == Settings.from_mapping(REQUIRED)


def test_a_certificate_file_is_looked_into(tmp_path: Path) -> None:
    """A file that holds no PEM certificate, or a damaged one, is refused before the port is opened."""
    path = tmp_path / "cert.pem"
    whole = Authority("server", ca=False).pem
    for pem in (b"-----BEGIN PRIVATE KEY-----\n", b"-----BEGIN CERTIFICATE-----\n", whole[:300], whole[300:]):
        path.write_bytes(pem)
        (problem,) = problems_of({**REQUIRED, "TLS_CERT_PATH": str(path)})
        assert "holds no readable PEM certificate" in problem
    path.write_bytes(whole)
    assert Settings.from_mapping({**REQUIRED, "TLS_CERT_PATH": str(path)}).tls_cert_path == path


def test_a_certificate_is_in_a_regular_file(tmp_path: Path) -> None:
    """A pipe is named as a problem at once: to read it would wait for whoever writes."""
    pipe = tmp_path / "cert.pem"
    os.mkfifo(pipe)
    (problem,) = problems_of({**REQUIRED, "TLS_CERT_PATH": str(pipe)})
    assert problem.startswith("TLS_CERT_PATH names a file that is no regular file")


def test_a_certificate_is_in_a_file_of_a_certificate_s_size(tmp_path: Path) -> None:
    """A file of more than a mebibyte is refused, whatever it begins with: it is something else."""
    path = tmp_path / "cert.pem"
    whole = Authority("server", ca=False).pem
    path.write_bytes(whole.ljust(2**20, b"\n"))
    assert Settings.from_mapping({**REQUIRED, "TLS_CERT_PATH": str(path)}).tls_cert_path == path
    path.write_bytes(whole.ljust(2**20 + 1, b"\n"))
    (problem,) = problems_of({**REQUIRED, "TLS_CERT_PATH": str(path)})
    assert "is larger than 1 MiB" in problem


def test_tokens_are_not_shown() -> None:
    """Neither the settings nor their variable's table give them away."""
    settings = Settings.from_mapping({**REQUIRED, "TOKEN": CANARY})
    assert CANARY not in repr(settings)
    assert [variable.name for variable in VARIABLES.values() if variable.secret] == ["TOKEN"]


GARBAGE = st.text(st.characters(codec=None, categories=None), max_size=30)


@given(
    st.dictionaries(
        st.sampled_from([variable.name for variable in VARIABLES.values()]), GARBAGE.map(lambda text: CANARY + text)
    )
)
def test_garbage_is_a_settings_error_that_quotes_no_value(mapping: dict[str, str]) -> None:
    """For any values, a secret in the wrong place among them: settings, or an error that shows none of them."""
    message = ""
    try:
        Settings.from_mapping(mapping)
    except SettingsError as error:
        message = "".join(traceback.format_exception(error))
    assert CANARY not in message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dev": True}, "DEV is on"),
        ({"gpu_no_hw_mode": True}, "GPU_NO_HW_MODE is on"),
        ({"dstack_simulator_endpoint": "http://localhost:8090"}, "DSTACK_SIMULATOR_ENDPOINT is set"),
        ({"gpu_evidence_python": "sh", "gpu_evidence_command": "sh"}, "GPU_EVIDENCE_PYTHON is not used"),
    ],
)
def test_warnings_are_given_for_what_an_operator_should_know(changes: dict[str, Any], complaint: str) -> None:
    """Modes that prove nothing, and what has no effect; and nothing where there is none of them."""
    assert complaint in " ".join(Settings(model_name="m", tokens=("t",), **changes).warnings())
    assert Settings(model_name="m", tokens=("t",)).warnings() == ()


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"backend_url": "http://127.0.0.2:8000"}, True),
        ({"backend_url": "http://[::1]:8000"}, True),
        ({"backend_url": "http://LOCALHOST", "listen_port": 80}, True),
        ({"backend_url": "https://localhost", "listen_port": 443}, True),
        ({"backend_url": "http://10.0.0.1:8000", "listen_host": "10.0.0.1"}, True),
        ({"listen_port": 8001}, False),
        ({"backend_url": "http://vllm:8000"}, False),
        ({"backend_url": "https://localhost", "listen_port": 80}, False),
        ({"backend_url": "http://10.0.0.1:8000"}, False),
    ],
)
def test_a_backend_may_be_the_server_itself(changes: dict[str, Any], *, may: bool) -> None:
    """On the same port of the same machine; another port or another host is fine."""
    assert Settings(model_name="m", tokens=("t",), **changes).backend_may_be_this_server is may


def test_what_is_required_has_to_be_passed() -> None:
    """Type checkers notice too: where they do not, these comments are in vain, which mypy says."""
    with pytest.raises(TypeError, match="'model_name' and 'tokens'"):
        Settings()  # type: ignore[call-arg] # this is the mistake
    with pytest.raises(TypeError, match="'tokens'"):
        Settings(model_name="m")  # type: ignore[call-arg] # likewise


@pytest.mark.parametrize(("changes", "may"), [({}, False), ({"dev": True}, True), ({"gpu_no_hw_mode": True}, True)])
def test_gpu_evidence_is_made_up_only_where_that_was_asked_for(changes: dict[str, Any], *, may: bool) -> None:
    """In development, or for machines without the hardware."""
    assert Settings(model_name="m", tokens=("t",), **changes).may_simulate_gpus is may


def test_secrets_do_not_reach_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker gets the environment without them."""
    monkeypatch.setenv("TOKEN", CANARY)
    monkeypatch.setenv("MODEL_NAME", "some/model")
    environment = worker_environment()
    assert "TOKEN" not in environment
    assert environment["MODEL_NAME"] == "some/model"


OWN: dict[str, Any] = {"model_name": "m", "tokens": ("t",)}

BAD_KEYWORDS: list[tuple[str, object, str]] = [
    ("tokens", "long-secret-token", "one text"),
    ("tokens", (), "holds no token"),
    ("tokens", 7, "is no collection of texts"),
    ("tokens", b"secret", "is no collection of texts"),
    ("tokens", (b"secret",), "is no collection of texts"),
    ("tokens", ("t", None), "is no collection of texts"),
    ("tokens", ("t", ""), "an empty token"),
    ("tokens", ("t", " "), "no Authorization header can carry"),
    ("tokens", ("one,two",), "no Authorization header can carry"),
    ("tokens", ("two words",), "no Authorization header can carry"),
    ("model_name", "", "is empty"),
    ("backend_url", "localhost:8000", "is not an http or https URL"),
    ("rerank_url", "http://user:secret@host/", "holds a user name"),
    ("max_request_bytes", -1, "is not a whole number"),
    ("max_keepalive", 2.5, "is not a whole number"),
    ("rate_limit_per_second", 0, "is less than 1"),
    ("listen_port", 65536, "is more than 65535"),
    ("client_body_timeout", 0.0, "is not a positive number"),
    ("signature_ttl", float("nan"), "is not a positive number"),
    ("dev", "perhaps", "is not a boolean"),
    ("signed_text", "v3", "is none of"),
    ("tls_cert_path", Path("/nowhere.pem"), "names a file that cannot be read"),
    ("gpu_evidence_command", "worker '", "is no command line"),
    ("gpu_evidence_python", Path("/nowhere/python"), "names a program that is not there"),
]


@pytest.mark.parametrize(("name", "value", "complaint"), BAD_KEYWORDS)
def test_bad_keywords(name: str, value: object, complaint: str) -> None:
    """Whoever builds settings in a program is told of what a variable could not hold, by the field's name."""
    with pytest.raises(SettingsError) as caught:
        Settings(**{**OWN, name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name} ")
    assert complaint in problem
    assert "secret" not in problem


@pytest.mark.parametrize("name", VARIABLES)
def test_none_is_for_what_is_not_set_by_default(name: str) -> None:
    """Elsewhere it would be a time limit that is none: passing on a variable that nobody has set is an error."""
    if (name, None) in [(field, default) for _, field, default in DEFAULTS]:
        assert Settings(**{**OWN, name: None}) == Settings(**OWN)
    else:
        with pytest.raises(SettingsError) as caught:
            Settings(**{**OWN, name: None})
        (problem,) = caught.value.problems
        assert problem.startswith(f"{name} is not set")


def test_every_bad_keyword_is_reported_at_once() -> None:
    """As it is for variables."""
    with pytest.raises(SettingsError) as caught:
        Settings(model_name=" ", tokens=(), listen_port=0)
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == ["model_name", "tokens", "listen_port"]


def test_keywords_are_held_as_variables_are() -> None:
    """A URL without the slash at its end, to which a path can be appended; tokens as a tuple."""
    settings = Settings(model_name=" m ", tokens=["one", "two"], backend_url="http://h/", score_url=" http://s/x/ ")  # type: ignore[arg-type] # a list does as well
    assert (settings.model_name, settings.tokens) == ("m", ("one", "two"))
    assert (settings.backend_url, settings.score_url) == ("http://h", "http://s/x/")


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, text, _ in GOOD])
def test_what_a_variable_holds_can_be_a_keyword(name: str, text: str) -> None:
    """Both ways lead to the same settings."""
    settings = Settings.from_mapping({**REQUIRED, name: text})
    assert Settings(**{field: getattr(settings, field) for field in VARIABLES}) == settings
