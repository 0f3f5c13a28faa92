"""A small signing proxy written the common way, to compare with: FastAPI, an httpx client, eth-account, a TTL dict.

It works: it checks the token, relays JSON and streams, inserts an id where there is none, signs with both algorithms
and answers with the signature. It re-encodes the JSON it has parsed, as such proxies do, and signs what it sends.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Annotated, Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eth_account import Account
from eth_account.messages import encode_defunct
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

__all__ = ["app"]

BACKEND = os.environ.get("VLLM_BASE_URL", "http://localhost:8000")
TOKEN = os.environ.get("TOKEN", "")
TTL = 1200.0


class TtlDict:
    """A dict whose entries age."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[float, dict[str, str]]] = {}

    def put(self, key: str, value: dict[str, str]) -> None:
        """Keep a value, and drop what has aged: those from the front, since all live equally long."""
        now = time.monotonic()
        while self._entries and next(iter(self._entries.values()))[0] < now:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (now + TTL, value)

    def get(self, key: str) -> dict[str, str] | None:
        """Return a value that has not aged."""
        aged, value = self._entries.get(key, (0.0, None))
        return value if aged > time.monotonic() else None


class Signer:
    """Both keys, as the libraries offer them."""

    def __init__(self) -> None:
        self._ecdsa = Account.create()
        self._ed25519 = Ed25519PrivateKey.generate()

    def sign(self, request: str, response: str) -> dict[str, str]:
        """Return the text and both signatures."""
        text = f"{request}:{response}"
        return {
            "text": text,
            "signature_ecdsa": "0x" + self._ecdsa.sign_message(encode_defunct(text=text)).signature.hex(),
            "signing_address_ecdsa": self._ecdsa.address,
            "signature_ed25519": self._ed25519.sign(text.encode()).hex(),
            "signing_address_ed25519": self._ed25519.public_key().public_bytes_raw().hex(),
        }


signatures, signer = TtlDict(), Signer()


@asynccontextmanager
async def lifespan(running: FastAPI) -> AsyncIterator[None]:
    """Open the client while the app runs."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=BACKEND, timeout=600, limits=limits) as client:
        running.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


def check_token(authorization: Annotated[str, Header()] = "") -> None:
    """Refuse a request without the token."""
    if not secrets.compare_digest(authorization, f"Bearer {TOKEN}"):
        raise HTTPException(401, "Invalid or missing Authorization header")


@app.post("/v1/chat/completions", dependencies=[Depends(check_token)])
async def chat(request: Request) -> Response:
    """Relay a chat, and sign the answer."""
    body = await request.body()
    question: dict[str, Any] = json.loads(body)
    digest = sha256(body).hexdigest()
    url = httpx.URL("/v1/chat/completions", query=request.url.query.encode())
    sent = app.state.client.build_request("POST", url, json=question)
    answer: httpx.Response = await app.state.client.send(sent, stream=True)
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        return StreamingResponse(relay_events(answer, digest), media_type="text/event-stream")
    await answer.aread()
    await answer.aclose()
    if answer.status_code != 200:
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))
    document: dict[str, Any] = answer.json()
    document.setdefault("id", f"chatcmpl-{secrets.token_hex(12)}")
    response = JSONResponse(document)
    signatures.put(document["id"], signer.sign(digest, sha256(response.body).hexdigest()))
    return response


async def relay_events(answer: httpx.Response, digest: str) -> AsyncIterator[str]:
    """Pass events on line by line, and sign before the end is passed on."""
    response, chat_id = sha256(), ""
    async for line in answer.aiter_lines():
        data = line.removeprefix("data: ")
        if line.startswith("data: ") and data != "[DONE]":
            chat_id = chat_id or json.loads(data).get("id", "")
        sent = line + "\n"
        response.update(sent.encode())
        if data == "[DONE]":
            response.update(b"\n")
            signatures.put(chat_id, signer.sign(digest, response.hexdigest()))
            yield sent + "\n"
            break
        yield sent
    await answer.aclose()


@app.get("/v1/signature/{chat_id}", dependencies=[Depends(check_token)])
async def signature(chat_id: str) -> dict[str, str]:
    """Return what was signed for a chat."""
    found = signatures.get(chat_id)
    if found is None:
        raise HTTPException(404, "Chat id not found or expired")
    return found
