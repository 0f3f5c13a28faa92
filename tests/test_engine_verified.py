"""The official client through a verifying transport, in all its ways of asking, before a real engine.

Where `teesign serve` simulates its evidence, the policy that accepts it is the unsafe one. For the table of changes it
runs as in production, with evidence that verifies up to the test's authorities; all rows, without an engine, are in
`test_man_in_the_middle`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

WHY_SKIPPED = "the engine's packages are not installed; run `nox -s engine`"
pytest.importorskip("xllamacpp", reason=WHY_SKIPPED)
pytest.importorskip("gguf", reason=WHY_SKIPPED)
pytest.importorskip("openai", reason=WHY_SKIPPED)

import httpx  # noqa: E402
import httpx2  # noqa: E402
import openai  # noqa: E402
from backend import Backend  # noqa: E402
from changes import MAIN_CHANGES, Row  # noqa: E402
from engines import CHAT, TOKEN, attested_server, running_engine, running_server  # noqa: E402
from far_end import clock, trust  # noqa: E402
from mitm import MiddleMan, middle_man  # noqa: E402
from tiny_engine import END  # noqa: E402

from teesign import VerificationError  # noqa: E402
from teesign.client import AsyncVerifyingTransport, VerifiedResponse, VerifyingTransport  # noqa: E402
from teesign.verify.policy import UnsafeSimulatedPolicy  # noqa: E402

FAMILIES = [httpx, httpx2]
VERIFYING = (Path(__file__).parents[1] / "docs" / "verifying.md").read_text()
ASKED: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 12}
# The helper for streams refuses an answer that was cut off; a model of random weights has to be told to end.
ENDED: dict[str, Any] = {**ASKED, "logit_bias": {str(END): 100}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a llama.cpp server."""
    with running_engine(tmp_path_factory.mktemp("engine")) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(engine: str) -> Iterator[str]:
    """The address of `teesign serve` in front of it."""
    with running_server(engine) as url:
        yield url


@pytest.fixture(scope="module")
def shared_middle(engine: str) -> Iterator[MiddleMan]:
    """A man in the middle before `teesign serve`, whose reports verify."""
    with attested_server(engine) as url, middle_man(int(url.rpartition(":")[2])) as running:
        yield running


@pytest.fixture
def middle(shared_middle: MiddleMan) -> MiddleMan:
    """The same, changing nothing until it is told to."""
    shared_middle.behave()
    return shared_middle


@contextmanager
def verifying(family: Any, url: str, results: list[VerifiedResponse], **options: Any) -> Iterator[openai.OpenAI]:
    """Give the official client over a verifying transport."""
    given = {"trust": UnsafeSimulatedPolicy(), "verified": results.append, **options}
    with (
        family.Client(transport=VerifyingTransport(**given)) as http_client,
        openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, http_client=http_client) as client,
    ):
        yield client


@asynccontextmanager
async def verifying_async(
    family: Any, url: str, results: list[VerifiedResponse], **options: Any
) -> AsyncIterator[openai.AsyncOpenAI]:
    """Give the official asynchronous client over a verifying transport."""
    given = {"trust": UnsafeSimulatedPolicy(), "verified": results.append, **options}
    async with (
        family.AsyncClient(transport=AsyncVerifyingTransport(**given)) as http_client,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=TOKEN, http_client=http_client) as client,
    ):
        yield client


def whole(client: openai.OpenAI) -> None:
    """Ask for an answer in one piece."""
    assert client.chat.completions.create(**ASKED).choices


def streamed(client: openai.OpenAI) -> None:
    """Ask for a stream, and read it as most programs do."""
    assert list(client.chat.completions.create(**ASKED, stream=True))


def streamed_in_a_block(client: openai.OpenAI) -> None:
    """Ask for a stream, and close it after its end."""
    with client.chat.completions.create(**ASKED, stream=True) as stream:
        assert [chunk.choices for chunk in stream]


def raw(client: openai.OpenAI) -> None:
    """Ask for the raw response: it says itself that it was verified."""
    response = client.chat.completions.with_raw_response.create(**ASKED)
    assert response.parse().choices
    assert response.http_response.extensions["teesign"].answer.signing_address


def raw_streamed(client: openai.OpenAI) -> None:
    """Ask for the raw response of a stream."""
    response = client.chat.completions.with_raw_response.create(**ASKED, stream=True)
    assert "teesign" not in response.http_response.extensions
    assert list(response.parse())
    assert "teesign" in response.http_response.extensions


def streaming_response(client: openai.OpenAI) -> None:
    """Ask for a response whose body is read later."""
    with client.chat.completions.with_streaming_response.create(**ASKED) as response:
        assert b"choices" in response.read()


def streaming_response_lines(client: openai.OpenAI) -> None:
    """Ask for the lines of a stream."""
    with client.chat.completions.with_streaming_response.create(**ASKED, stream=True) as response:
        assert "data: [DONE]" in list(response.iter_lines())


def helper(client: openai.OpenAI) -> None:
    """Use the helper for streams, which puts the answer together."""
    with client.chat.completions.stream(**ENDED) as stream:
        assert [event.type for event in stream]
        assert stream.get_final_completion().choices


def completion(client: openai.OpenAI) -> None:
    """Ask for a plain completion, streamed."""
    assert list(client.completions.create(model="tiny", prompt="noise", max_tokens=8, stream=True))


WAYS: list[Callable[[openai.OpenAI], None]] = [
    whole,
    streamed,
    streamed_in_a_block,
    raw,
    raw_streamed,
    streaming_response,
    streaming_response_lines,
    helper,
    completion,
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_asking_verifies(proxy: str, family: Any, way: Callable[[openai.OpenAI], None]) -> None:
    """Each asks twice, and both answers verify, by one attestation."""
    results: list[VerifiedResponse] = []
    with verifying(family, proxy, results) as client:
        way(client)
        way(client)
    assert len(results) == 2
    assert results[0].attestation is results[1].attestation
    assert results[0].attestation.verified.simulated


async def whole_async(client: openai.AsyncOpenAI) -> None:
    """Ask for an answer in one piece."""
    assert (await client.chat.completions.create(**ASKED)).choices


async def streamed_async(client: openai.AsyncOpenAI) -> None:
    """Ask for a stream."""
    assert [chunk async for chunk in await client.chat.completions.create(**ASKED, stream=True)]


async def raw_async(client: openai.AsyncOpenAI) -> None:
    """Ask for the raw response."""
    response = await client.chat.completions.with_raw_response.create(**ASKED)
    assert response.parse().choices
    assert "teesign" in response.http_response.extensions


async def raw_streamed_async(client: openai.AsyncOpenAI) -> None:
    """Ask for the raw response of a stream."""
    response = await client.chat.completions.with_raw_response.create(**ASKED, stream=True)
    assert [chunk async for chunk in response.parse()]
    assert "teesign" in response.http_response.extensions


async def streaming_response_async(client: openai.AsyncOpenAI) -> None:
    """Ask for the lines of a stream."""
    async with client.chat.completions.with_streaming_response.create(**ASKED, stream=True) as response:
        assert "data: [DONE]" in [line async for line in response.iter_lines()]


async def helper_async(client: openai.AsyncOpenAI) -> None:
    """Use the helper for streams."""
    async with client.chat.completions.stream(**ENDED) as stream:
        assert [event.type async for event in stream]
        assert (await stream.get_final_completion()).choices


@pytest.mark.anyio
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "way", [whole_async, streamed_async, raw_async, raw_streamed_async, streaming_response_async, helper_async]
)
async def test_every_asynchronous_way_of_asking_verifies(proxy: str, family: Any, way: Any) -> None:
    """On both event loops."""
    results: list[VerifiedResponse] = []
    async with verifying_async(family, proxy, results) as client:
        await way(client)
        await way(client)
    assert len(results) == 2
    assert results[0].attestation is results[1].attestation


def test_the_example_of_the_page_works(proxy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script of docs/verifying.md prints an answer, and that it was verified."""
    page = (Path(__file__).parents[1] / "docs" / "verifying.md").read_text()
    script = page.partition("## Under the OpenAI SDK")[2].partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {
        "policy_json": '{"policy": "UnsafeSimulatedPolicy"}',
        "url": proxy,
        "token": TOKEN,
        "model": "tiny",
    }
    script = script.replace("stream=True", "stream=True, max_tokens=8")
    exec(compile(script, "verifying.md", "exec"), names)
    names["client"].close()
    assert capsys.readouterr().out.endswith("\nverified\n")


def test_models_are_listed_and_errors_are_the_clients_own(proxy: str) -> None:
    """What is not signed passes as without verification."""
    results: list[VerifiedResponse] = []
    with verifying(httpx2, proxy, results) as client:
        assert [model.id for model in client.models.list()]
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="tiny", messages="not a list")  # type: ignore[arg-type] # the mistake under test
    assert not results


def test_a_stream_that_is_left_early_is_not_verified(proxy: str) -> None:
    """Nor is it an error: the program has decided that it has seen enough."""
    results: list[VerifiedResponse] = []
    with verifying(httpx2, proxy, results) as client:
        with client.chat.completions.create(**ASKED | {"max_tokens": 200}, stream=True) as stream:
            next(iter(stream))
        assert not results


def ask_once(client: openai.OpenAI, *, stream: bool) -> None:
    """Ask, and read to the end."""
    answer = client.chat.completions.create(**ASKED, temperature=0, stream=stream)
    if stream:
        list(answer)


@pytest.mark.parametrize("row", MAIN_CHANGES, ids=[row.name for row in MAIN_CHANGES])
def test_a_man_in_the_middle_is_caught(middle: MiddleMan, row: Row) -> None:
    """The client does not hide it, does not try again, and does not take it for an answer."""
    setattr(middle, row.place, row.change)
    results: list[VerifiedResponse] = []
    with verifying(httpx2, middle.url, results, trust=trust(), clock=clock) as client:
        with pytest.raises(VerificationError) as caught:
            ask_once(client, stream=row.streamed)
        assert caught.value.code == row.code
        assert not results
        middle.behave()
        ask_once(client, stream=row.streamed)
    assert len(results) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("row", MAIN_CHANGES, ids=[row.name for row in MAIN_CHANGES])
async def test_a_man_in_the_middle_is_caught_asynchronously(middle: MiddleMan, row: Row) -> None:
    """The same, on both event loops."""
    setattr(middle, row.place, row.change)
    results: list[VerifiedResponse] = []
    async with verifying_async(httpx2, middle.url, results, trust=trust(), clock=clock) as client:

        async def ask() -> None:
            answer = await client.chat.completions.create(**ASKED, temperature=0, stream=row.streamed)
            if row.streamed:
                [chunk async for chunk in cast(openai.AsyncStream[Any], answer)]

        with pytest.raises(VerificationError) as caught:
            await ask()
        assert caught.value.code == row.code
    assert not results


@pytest.mark.parametrize("what", ["responses", "realtime"])
def test_the_client_that_the_page_shows_opens_no_websocket_around_the_transport(what: str) -> None:
    """It opens them through another library: only their address can keep token and prompt from an unattested server."""
    pytest.importorskip("websockets", reason=WHY_SKIPPED)
    (shown,) = re.findall(r"```python\n(import httpx2 .*?)^stream = ", VERIFYING, re.DOTALL | re.MULTILINE)
    with Backend() as stranger:
        names: dict[str, Any] = {"policy_json": "{}", "url": stranger.url, "token": TOKEN}
        exec(shown, names)
        model = {"model": "tiny"} if what == "realtime" else {}
        with (
            names["client"] as client,
            pytest.raises(Exception, match="scheme") as caught,
            getattr(client, what).connect(**model),
        ):
            pass
        assert stranger.connections == 0
    assert TOKEN not in str(caught.value)
