"""Settings from environment variables: one table, read once, every problem reported at once.

Nothing else reads these variables, but for `teesign verify`, which takes `TOKEN` as a client. Settings are read from a
mapping, so that tests, embedding programs and the command line can each bring their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

import httpcore

from . import values
from .errors import SettingsError

__all__ = ["VARIABLES", "Settings", "Variable", "worker_environment"]

_THIS_MACHINE: Final = frozenset(("localhost", "0.0.0.0", "::1", "::"))  # noqa: S104 - names to recognise, not to bind
_DAY: Final = 86_400


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Attributes:
        name: its name, `MODEL_NAME`; the command line's flag is `--model-name`.
        parse: turns its text into the setting's value; raises ValueError with the rest of a sentence that begins with
            a name, the variable's or the field's, and never quotes the value.
        example: a value that works, for messages.
        help: what it is for, one line.
        secret: whether its value must never be shown.
        several: whether the setting is several texts, which the variable separates by commas; `parse` takes them all.
        look: looks whether the value is one that this machine has, if nothing is simulated; raises as `parse` does.
    """

    name: str
    parse: Callable[[str], Any]
    example: str
    help: str
    secret: bool = False
    several: bool = False
    look: Callable[[Any], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that an operator can choose; see README.md, "Settings", for each. Never changes.

    Build it with `Settings.from_mapping(os.environ)`, or from keyword arguments, whose names and types are these. They
    are checked as the variables are, and held in the same form: a URL without slashes at its end. None is only for what
    has no value by default.

    Raises:
        SettingsError: with every problem that the arguments have. No value is quoted.
    """

    model_name: str
    tokens: tuple[str, ...] = field(repr=False)
    backend_url: str = "http://localhost:8000"
    dev: bool = False
    gpu_no_hw_mode: bool = False
    signature_ttl: float = 1200.0
    max_request_bytes: int = 10 * 1024**2
    max_image_request_bytes: int = 50 * 1024**2
    max_audio_request_bytes: int = 100 * 1024**2
    max_keepalive: int = 100
    listen_port: int = 8000
    listen_host: str = "0.0.0.0"  # noqa: S104 - the contract's default
    images_url: str | None = None
    images_edits_url: str | None = None
    transcriptions_url: str | None = None
    rerank_url: str | None = None
    score_url: str | None = None
    backend_timeout: float = 600.0
    client_body_timeout: float = 30.0
    client_write_timeout: float = 60.0
    rate_limit_per_second: int = 100
    rate_limit_burst: int = 200
    trusted_proxy_hops: int = 0
    signature_cache_max_entries: int = 1_000_000
    attestation_cache_ttl: float = 300.0
    public_attestation: bool = False
    trust_request_hash: bool = False
    allow_backend_admin: bool = False
    signed_text: Literal["v1", "v2"] = "v1"
    tls_cert_path: Path | None = None
    gpu_evidence_python: str | None = None
    gpu_evidence_command: str | None = None
    dstack_simulator_endpoint: str | None = None
    drain_delay: float = 0.0
    drain_timeout: float = 30.0
    drain_linger: float = 5.0
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name, variable in VARIABLES.items():
            value = getattr(self, name)
            try:
                if value is None and name not in _OPTIONAL:
                    raise ValueError("is not set" if name in _REQUIRED else "is not set: for its default, leave it out")
                if value is not None:
                    value = variable.parse(value if variable.several else str(value))
                    if variable.look is not None and not self.may_simulate_gpus:
                        variable.look(value)
            except ValueError as problem:
                problems.append(f"{name} {problem}")
                value = None  # a mode that cannot be read is not on
            object.__setattr__(self, name, value)
        if problems:
            raise SettingsError(tuple(problems))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, str]) -> Settings:
        """Read the settings from environment variables.

        Args:
            mapping: variable names and values, such as `os.environ`. Names that are not settings are left alone; a
                variable that is set to nothing counts as not set.

        Raises:
            SettingsError: with every problem there is. No value is quoted: it may be a secret in the wrong place.
        """
        given: dict[str, Any] = dict.fromkeys(_REQUIRED)
        for name, variable in VARIABLES.items():
            if text := mapping.get(variable.name):
                given[name] = values.parts(text) if variable.several else text
        try:
            return cls(**given)
        except SettingsError as error:
            raise SettingsError(tuple(map(_of_variable, error.problems))) from None

    @property
    def may_simulate_gpus(self) -> bool:
        """Whether GPU evidence may be made up where the machine has none; it is marked as simulated then."""
        return self.dev or self.gpu_no_hw_mode

    def warnings(self) -> tuple[str, ...]:
        """Return what an operator should be told at every start."""
        found = []
        if self.dev:
            found.append("DEV is on: the signing keys are random and prove nothing. Never use this in production")
        if self.dstack_simulator_endpoint is not None:
            found.append("DSTACK_SIMULATOR_ENDPOINT is set: keys and quotes come from a simulator and prove nothing")
        if self.gpu_no_hw_mode:
            found.append("GPU_NO_HW_MODE is on: the GPU evidence is canned and proves nothing")
        if self.gpu_evidence_command is not None and self.gpu_evidence_python is not None:
            found.append("GPU_EVIDENCE_PYTHON is not used: GPU_EVIDENCE_COMMAND takes its place. Set one of the two")
        return tuple(found)

    @property
    def backend_may_be_this_server(self) -> bool:
        """Whether the backend's URL may be that of a server which listens where these settings say."""
        backend = httpcore.URL(self.backend_url)
        host, port = backend.host.decode().lower(), backend.port or (443 if backend.scheme == b"https" else 80)
        return port == self.listen_port and (
            host in _THIS_MACHINE or host.startswith("127.") or host == self.listen_host
        )


VARIABLES: Final[Mapping[str, Variable]] = {
    "model_name": Variable("MODEL_NAME", values.text, "Qwen/Qwen3-8B", "Model name: cache namespace and KMS key path."),
    "tokens": Variable(
        "TOKEN",
        values.tokens,
        "a-long-random-string",
        "Bearer token, or several separated by commas.",
        secret=True,
        several=True,
    ),
    "backend_url": Variable(
        "VLLM_BASE_URL", values.base_url, "http://localhost:9000", "Backend to relay to, over TCP; not a Unix socket."
    ),
    "dev": Variable("DEV", values.boolean, "1", "Random keys, and simulated quotes where there is no dstack."),
    "gpu_no_hw_mode": Variable("GPU_NO_HW_MODE", values.boolean, "1", "Canned GPU evidence."),
    "signature_ttl": Variable(
        "CHAT_CACHE_EXPIRATION", values.seconds(zero=False), "1200", "How long signatures are kept, seconds."
    ),
    "max_request_bytes": Variable(
        "VLLM_PROXY_MAX_REQUEST_SIZE", values.integer(1), "10485760", "Limit of JSON bodies, bytes."
    ),
    "max_image_request_bytes": Variable(
        "VLLM_PROXY_MAX_IMAGE_REQUEST_SIZE", values.integer(1), "52428800", "Limit of image requests, bytes."
    ),
    "max_audio_request_bytes": Variable(
        "VLLM_PROXY_MAX_AUDIO_REQUEST_SIZE",
        values.integer(1),
        "104857600",
        "Limit of audio requests and of the catch-all, bytes.",
    ),
    "max_keepalive": Variable(
        "VLLM_PROXY_MAX_KEEPALIVE", values.integer(0), "100", "Idle backend connections kept per host."
    ),
    "listen_port": Variable("LISTEN_PORT", values.integer(1, 65535), "8000", "Port to listen on."),
    "listen_host": Variable("LISTEN_HOST", values.text, "0.0.0.0", "Address to listen on."),  # noqa: S104 - an example
    "images_url": Variable(
        "VLLM_IMAGES_URL", values.url, "http://images:9000/v1/images/generations", "Other backend for image generation."
    ),
    "images_edits_url": Variable(
        "VLLM_IMAGES_EDITS_URL", values.url, "http://images:9000/v1/images/edits", "Other backend for image edits."
    ),
    "transcriptions_url": Variable(
        "VLLM_TRANSCRIPTIONS_URL",
        values.url,
        "http://whisper:9000/v1/audio/transcriptions",
        "Other backend for transcriptions.",
    ),
    "rerank_url": Variable(
        "VLLM_RERANK_URL", values.url, "http://rerank:9000/v1/rerank", "Other backend for reranking."
    ),
    "score_url": Variable("VLLM_SCORE_URL", values.url, "http://rerank:9000/v1/score", "Other backend for scoring."),
    "backend_timeout": Variable(
        "VLLM_PROXY_TIMEOUT_SECS", values.seconds(zero=False), "600", "Longest silence from the backend, seconds."
    ),
    "client_body_timeout": Variable(
        "CLIENT_BODY_TIMEOUT",
        values.seconds(zero=False, maximum=_DAY),
        "30",
        "Longest silence of a client within a request's body, seconds.",
    ),
    "client_write_timeout": Variable(
        "CLIENT_WRITE_TIMEOUT",
        values.seconds(zero=False, maximum=_DAY),  # the kernel, which is told too, counts to 24.8 days
        "60",
        "Longest time in which a client takes nothing of a response, seconds.",
    ),
    "rate_limit_per_second": Variable(
        "RATE_LIMIT_PER_SECOND", values.integer(1), "100", "Requests a second and client IP."
    ),
    "rate_limit_burst": Variable("RATE_LIMIT_BURST_SIZE", values.integer(1), "200", "Requests at once and client IP."),
    "trusted_proxy_hops": Variable(
        "TRUSTED_PROXY_HOPS", values.integer(0, 100), "1", "Proxies in front whose X-Forwarded-For entry counts."
    ),
    "signature_cache_max_entries": Variable(
        "SIGNATURE_CACHE_MAX_ENTRIES", values.integer(1), "1000000", "Signed responses kept; oldest go first."
    ),
    "attestation_cache_ttl": Variable(
        "ATTESTATION_CACHE_TTL", values.seconds(zero=True), "300", "How long a report serves, seconds; 0: never."
    ),
    "public_attestation": Variable("PUBLIC_ATTESTATION", values.boolean, "1", "Reports without a token."),
    "trust_request_hash": Variable(
        "TRUST_REQUEST_HASH", values.boolean, "1", "Sign the hash in X-Request-Hash; only behind a gateway of yours."
    ),
    "allow_backend_admin": Variable(
        "ALLOW_BACKEND_ADMIN", values.boolean, "1", "Relay administrative paths of the engine."
    ),
    "signed_text": Variable(
        "SIGNED_TEXT", values.choice("v1", "v2"), "v1", "Form of the signed text: v1, or v2 with the model's name."
    ),
    "tls_cert_path": Variable(
        "TLS_CERT_PATH", values.certificate, "/etc/tls/cert.pem", "Certificate (PEM) that reports can bind."
    ),
    "gpu_evidence_python": Variable(
        "GPU_EVIDENCE_PYTHON",
        values.text,
        "/opt/gpu/bin/python",
        "Interpreter that has nv-attestation-sdk.",
        look=values.look_for_program,
    ),
    "gpu_evidence_command": Variable(
        "GPU_EVIDENCE_COMMAND",
        values.command_line,
        "/opt/gpu/worker --all",
        "Program that takes the evidence worker's place.",
        look=values.look_for_command,
    ),
    "dstack_simulator_endpoint": Variable(
        "DSTACK_SIMULATOR_ENDPOINT",
        values.endpoint,
        "http://localhost:8090",
        "Simulator in the guest agent's place; reports say so.",
    ),
    "drain_delay": Variable(
        "DRAIN_DELAY",
        values.seconds(zero=True, maximum=_DAY),
        "10",
        "After SIGTERM: not ready, but all is served, seconds.",
    ),
    "drain_timeout": Variable(
        "DRAIN_TIMEOUT",
        values.seconds(zero=True, maximum=_DAY),
        "30",
        "After that: open responses may finish, seconds.",
    ),
    "drain_linger": Variable(
        "DRAIN_LINGER",
        values.seconds(zero=True, maximum=_DAY),
        "5",
        "The last signature can be fetched before the end, seconds.",
    ),
    "log_format": Variable(
        "LOG_FORMAT", values.choice("text", "json"), "json", "Log lines: text, or json for machines."
    ),
    "log_level": Variable(
        "LOG_LEVEL", values.choice("debug", "info", "warning", "error"), "info", "Least severe level that is logged."
    ),
}
"""The variable behind each field of `Settings`, in the order of the README's table."""

_REQUIRED: Final = frozenset(setting.name for setting in fields(Settings) if setting.default is MISSING)
_OPTIONAL: Final = frozenset(setting.name for setting in fields(Settings) if setting.default is None)


def _of_variable(problem: str) -> str:
    """Say of a variable, with an example, the problem that the field behind it has."""
    name, _, complaint = problem.partition(" ")
    variable = VARIABLES[name]
    return f"{variable.name} {complaint}. Example: {variable.name}={variable.example}"


def worker_environment(*, other_interpreter: bool = False) -> dict[str, str]:
    """Return this process's environment for a process it starts: everything but the secrets among our variables.

    Args:
        other_interpreter: whether that is Python with packages of its own: where ours looks for some is left out too.
    """
    left_out = {variable.name for variable in VARIABLES.values() if variable.secret}
    if other_interpreter:
        left_out |= {"PYTHONPATH", "PYTHONHOME"}
    return {name: value for name, value in os.environ.items() if name not in left_out}
