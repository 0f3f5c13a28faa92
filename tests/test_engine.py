"""A real engine behind `teesign serve`, driven by the official client.

Nothing here is ours but the proxy: llama.cpp generates, `openai` asks, and the bytes that crossed the wire are hashed
and checked with `hashlib`, `eth-account` and `cryptography`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

WHY_SKIPPED = "the engine's packages are not installed; run `nox -s engine`"
pytest.importorskip("xllamacpp", reason=WHY_SKIPPED)
pytest.importorskip("gguf", reason=WHY_SKIPPED)
pytest.importorskip("openai", reason=WHY_SKIPPED)

import httpx2  # noqa: E402 - comes with openai
import openai  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: E402
from engines import CHAT, TOKEN, running_engine, running_server  # noqa: E402
from eth_account import Account  # noqa: E402
from eth_account.messages import encode_defunct  # noqa: E402

BODY_LIMIT = 100_000


class Recorder(httpx2.BaseTransport):
    """A transport that keeps the bytes of the last request and response, as they crossed the wire."""

    def __init__(self) -> None:
        self._transport = httpx2.HTTPTransport()
        self.request = b""
        self.response = b""
        self.headers = httpx2.Headers()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, and keep what crosses."""
        self.request, self.response = request.read(), b""
        response = self._transport.handle_request(request)
        self.headers = response.headers
        return httpx2.Response(response.status_code, headers=response.headers, stream=_Tee(self, response))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class _Tee(httpx2.SyncByteStream):
    def __init__(self, recorder: Recorder, response: httpx2.Response) -> None:
        self._recorder = recorder
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._response.iter_raw():
            self._recorder.response += chunk
            yield chunk

    def close(self) -> None:
        self._response.close()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `teesign serve` in front of the engine."""
    settings = {"VLLM_PROXY_MAX_REQUEST_SIZE": str(BODY_LIMIT)}
    with running_engine(tmp_path_factory.mktemp("engine")) as engine, running_server(engine, **settings) as url:
        yield url


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """What crosses the wire in one test."""
    transport = Recorder()
    yield transport
    transport.close()


@pytest.fixture
def client(proxy: str, recorder: Recorder) -> Iterator[openai.OpenAI]:
    """The official client, with the proxy as its server."""
    with (
        httpx2.Client(transport=recorder) as http_client,
        openai.OpenAI(base_url=f"{proxy}/v1", api_key=TOKEN, http_client=http_client, max_retries=0) as client,
    ):
        yield client


def test_a_chat_is_signed(client: openai.OpenAI, recorder: Recorder, proxy: str) -> None:
    """A chat answered in one piece verifies, byte for byte, under the id that the engine gave it."""
    answer = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=8)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert_signed(proxy, answer.id, recorder)


def test_a_streamed_chat_is_signed(client: openai.OpenAI, recorder: Recorder, proxy: str) -> None:
    """A streamed chat verifies as soon as the client has read its last chunk."""
    stream = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=16, stream=True)
    ids = {chunk.id for chunk in stream}
    assert len(ids) == 1
    assert recorder.response.endswith(b"data: [DONE]\n\n")
    assert_signed(proxy, ids.pop(), recorder)


def test_many_streamed_chats_are_signed(client: openai.OpenAI, recorder: Recorder, proxy: str) -> None:
    """Whatever noise the engine makes, each of fifty streams verifies."""
    for seed in range(50):
        stream = client.chat.completions.create(
            model="tiny", messages=CHAT, max_tokens=24, stream=True, temperature=2.0, seed=seed
        )
        last = list(stream)[-1]
        assert_signed(proxy, last.id, recorder)


def test_a_completion_is_signed(client: openai.OpenAI, recorder: Recorder, proxy: str) -> None:
    """A plain completion verifies."""
    answer = client.completions.create(model="tiny", prompt="noise", max_tokens=8)
    assert_signed(proxy, answer.id, recorder)


def test_the_random_id_answers_too(client: openai.OpenAI, recorder: Recorder, proxy: str) -> None:
    """The id in the response's header leads to the same signature as the id in its body."""
    client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=4)
    assert_signed(proxy, recorder.headers["x-signature-id"], recorder)


def test_models_are_listed(client: openai.OpenAI, recorder: Recorder) -> None:
    """The engine's models come through, unsigned."""
    assert [Path(model.id).name for model in client.models.list()] == ["tiny.gguf"]
    assert "x-signature-id" not in recorder.headers


@pytest.mark.parametrize(("path", "signed"), [("/v1/tokenize", False), ("/tokenize", True)])
def test_tokens_are_counted(
    client: openai.OpenAI,
    recorder: Recorder,
    proxy: str,
    path: str,
    signed: bool,  # noqa: FBT001 - a row
) -> None:
    """The named endpoint relays unsigned to the engine's `/tokenize`; the catch-all reaches the same one, signed."""
    answer = client.post(f"{proxy}{path}", body={"content": "abc"}, cast_to=httpx2.Response)
    assert len(answer.json()["tokens"]) > 2
    assert ("x-signature-id" in recorder.headers) is signed
    if signed:
        assert_signed(proxy, recorder.headers["x-signature-id"], recorder)


def test_the_asynchronous_client_works(proxy: str) -> None:
    """Concurrent streams through the asynchronous client each get the engine's whole answer, under ids of their own."""

    async def chat(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=16, stream=True)
        chunks = [chunk async for chunk in stream]
        return str(chunks[-1].id)

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{proxy}/v1", api_key=TOKEN, max_retries=0) as client:
            return await asyncio.gather(*(chat(client) for _ in range(8)))

    ids = asyncio.run(main())
    assert len(set(ids)) == 8
    for chat_id in ids:
        assert signature(proxy, chat_id)["signing_algo"] == "ecdsa"


def test_a_wrong_token_is_an_authentication_error(proxy: str) -> None:
    """401 becomes the client's own exception for it."""
    with (
        openai.OpenAI(base_url=f"{proxy}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="Invalid or missing Authorization header"),
    ):
        client.chat.completions.create(model="tiny", messages=CHAT)


def test_an_invalid_request_is_a_bad_request_error(client: openai.OpenAI) -> None:
    """The engine's 400 comes through with its own message."""
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="tiny", messages="not a list")  # type: ignore[arg-type] # the mistake under test


def test_an_unknown_path_is_a_not_found_error(client: openai.OpenAI) -> None:
    """The engine's 404 becomes the client's own exception for it."""
    with pytest.raises(openai.NotFoundError):
        client.batches.list()


def test_a_large_body_is_a_status_error(client: openai.OpenAI) -> None:
    """413 carries the limit."""
    with pytest.raises(openai.APIStatusError, match=f"Maximum: {BODY_LIMIT} bytes") as caught:
        client.completions.create(model="tiny", prompt="x" * BODY_LIMIT)
    assert caught.value.status_code == 413


def test_what_the_engine_cannot_do_is_a_server_error(client: openai.OpenAI) -> None:
    """The engine's 501 becomes the client's exception for failures of a server."""
    with pytest.raises(openai.InternalServerError, match="embeddings"):
        client.embeddings.create(model="tiny", input="x")


def signature(proxy: str, chat_id: str) -> dict[str, str]:
    """Return what the signature endpoint says about an id."""
    answer = httpx2.get(f"{proxy}/v1/signature/{chat_id}", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200, answer.text
    fields: dict[str, str] = json.loads(answer.content)
    return fields


def assert_signed(proxy: str, chat_id: str, recorder: Recorder) -> None:
    """Check both signatures of what the recorder saw, with nothing of teesign."""
    fields = signature(proxy, chat_id)
    digests = [hashlib.sha256(body).hexdigest() for body in (recorder.request, recorder.response)]
    assert fields["text"] == ":".join(digests)
    message = encode_defunct(text=fields["text"])
    recovered = Account.recover_message(message, signature=fields["signature_ecdsa"])
    assert recovered == fields["signing_address_ecdsa"]
    public_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(fields["signing_address_ed25519"]))
    public_key.verify(bytes.fromhex(fields["signature_ed25519"]), fields["text"].encode())
