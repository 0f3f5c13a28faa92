"""docs/wire-contract.md, "Signatures", over real sockets: asking for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from backend import json_answer
from servers import TOKEN, Stack, serve, settings_for, stack
from wire import Client, assert_signatures, sha256

from teesign import SignatureCache
from teesign.testing import ManualClock, fixed_pair
from teesign_asgi import App

CHAT = "/v1/chat/completions"
REQUEST = b"{}"
NOT_FOUND = (404, "not_found", "Chat id not found or expired")


@pytest.mark.parametrize("algorithm", [None, "ecdsa", "ed25519"])
def test_the_answer(proxy: Stack, algorithm: str | None) -> None:
    """It holds the text, both signatures, and the one that was asked for under the short names."""
    answered = proxy.client.post(CHAT, REQUEST)
    query = f"?signing_algo={algorithm}" if algorithm else ""
    found = proxy.client.signature(answered.header("x-signature-id") or "", query)
    fields = found.json()
    chosen = algorithm or "ecdsa"
    assert list(fields) == [
        "text",
        "signature",
        "signing_address",
        "signing_algo",
        "signature_ecdsa",
        "signing_address_ecdsa",
        "signature_ed25519",
        "signing_address_ed25519",
    ]
    assert fields["signing_algo"] == chosen
    assert fields["signature"] == fields[f"signature_{chosen}"]
    assert fields["signing_address"] == fields[f"signing_address_{chosen}"]
    assert found.header("content-type") == "application/json"
    assert_signatures(fields, f"{sha256(REQUEST)}:{sha256(answered.body)}")


def test_the_form_of_the_signatures(proxy: Stack) -> None:
    """ECDSA: 65 bytes after 0x, v of 27 or 28, low s. Ed25519: 64 bytes. Addresses of 20 and 32 bytes."""
    answered = proxy.client.post(CHAT, REQUEST)
    fields = proxy.client.signature(answered.header("x-signature-id") or "").json()
    assert len(fields["text"]) == 129
    assert fields["signature_ecdsa"].startswith("0x")
    signature = bytes.fromhex(fields["signature_ecdsa"][2:])
    assert len(signature) == 65
    assert signature[64] in (27, 28)
    assert int.from_bytes(signature[32:64], "big") <= 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
    assert len(bytes.fromhex(fields["signature_ed25519"])) == 64
    assert len(bytes.fromhex(fields["signing_address_ecdsa"][2:])) == 20
    assert len(bytes.fromhex(fields["signing_address_ed25519"])) == 32


@pytest.mark.parametrize("chat_id", ["unknown", "sig-" + "0" * 32, "a/b", "%", "x" * 1_000, "test/model:x", "é", " "])
def test_unknown_ids(proxy: Stack, chat_id: str) -> None:
    """There is nothing under an id that nobody used."""
    proxy.client.signature(chat_id).assert_error(*NOT_FOUND)


def test_the_empty_id(proxy: Stack) -> None:
    """The path without an id leads nowhere else, least of all to the backend."""
    proxy.client.get("/v1/signature/").assert_error(*NOT_FOUND)
    assert proxy.backend.connections == 0


@pytest.mark.parametrize("chat_id", ["a/b", "a%2Fb", "ü 😀", "..", "a?b#c", "a+b", "a;b", "test/model:x"])
def test_ids_are_percent_decoded(proxy: Stack, chat_id: str) -> None:
    """Any id can be asked for, whatever characters it has."""
    chat_id += f" {proxy.kind}"
    proxy.backend.play(json_answer(b'{"id":"%b"}' % chat_id.encode()))
    answered = proxy.client.post(CHAT, REQUEST)
    proxy.client.assert_answer_signed(answered, REQUEST, chat_id)


@pytest.mark.parametrize("algorithm", ["", "ECDSA", "rsa", "ed25519%00", "ecdsa,ed25519"])
@pytest.mark.parametrize("chat_id", ["an-id", "unknown"])
def test_bad_algorithms(proxy: Stack, chat_id: str, algorithm: str) -> None:
    """There are two, and the message names them; that is said before an id is looked up."""
    found = proxy.client.signature(chat_id, f"?signing_algo={algorithm}")
    found.assert_error(400, "bad_request", "Invalid signing algorithm. Must be 'ed25519' or 'ecdsa'")


def test_other_parameters_are_left_alone(proxy: Stack) -> None:
    """Clients of this family send the model along."""
    answered = proxy.client.post(CHAT, REQUEST)
    own = answered.header("x-signature-id") or ""
    assert proxy.client.signature(own, "?model=m&signing_algo=ed25519").status == 200


def test_signatures_expire() -> None:
    """For CHAT_CACHE_EXPIRATION seconds they are there, and then no more; their ids are free again."""
    clock = ManualClock()
    with stack(signature_ttl=20.0, parts={"clock": clock}) as proxy:
        first = proxy.client.post(CHAT, REQUEST).header("x-signature-id") or ""
        clock.advance(19.9)
        assert proxy.client.signature(first).status == 200
        second = proxy.client.post(CHAT, REQUEST).header("x-signature-id") or ""
        clock.advance(0.1)
        proxy.client.signature(first).assert_error(*NOT_FOUND)
        proxy.client.signature("x").assert_error(*NOT_FOUND)
        assert proxy.client.signature(second).status == 200


def test_the_oldest_signatures_go_first() -> None:
    """SIGNATURE_CACHE_MAX_ENTRIES bounds the signed responses, however many ids each has."""
    with stack(signature_cache_max_entries=2) as proxy:
        ids = []
        for number in range(3):
            proxy.backend.play(json_answer(b'{"id":"id-%d"}' % number))
            ids.append(proxy.client.post(CHAT, REQUEST).header("x-signature-id") or "")
        assert [proxy.client.signature(each).status for each in ids] == [404, 200, 200]
        assert [proxy.client.signature(f"id-{number}").status for number in range(3)] == [404, 200, 200]


@pytest.fixture
def neighbours() -> Iterator[tuple[Client, Client, Stack]]:
    """Two proxies for different models that share one store."""
    cache = SignatureCache(ttl=60, max_entries=10, clock=ManualClock())
    with stack(parts={"cache": cache}) as first:
        settings = settings_for(first.backend.url, model_name="test/other")
        with serve(App(settings, pair=fixed_pair(), cache=cache), "uvicorn") as port:
            yield first.client, Client(port, TOKEN), first


def test_ids_are_namespaced_by_the_model(neighbours: tuple[Client, Client, Stack]) -> None:
    """Processes that share a store do not see each other's models, not even by trick."""
    one, other, _ = neighbours
    own = one.post(CHAT, REQUEST).header("x-signature-id") or ""
    assert one.signature(own).status == 200
    assert one.signature("x").status == 200
    for chat_id in (own, "x", f"test/model:{own}", f"model:{own}"):
        other.signature(chat_id).assert_error(*NOT_FOUND)
    second = other.post(CHAT, REQUEST)
    other.assert_answer_signed(second, REQUEST, "x")
