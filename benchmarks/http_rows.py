"""Rows about CPU time for each request and for each streamed chunk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from .client import TIMEOUT, BenchmarkError, opened
from .contenders import Contender, Kind, Lab, open_lab
from .load import Window, json_load, stream_load
from .payloads import CHAT_PATH, QUESTION, Wish, request_head
from .plan import Plan
from .report import Comparison

__all__ = ["idle_connections", "json_chat", "many_streams", "streams"]

_JSON_TARGETS: Final[Mapping[Kind, float]] = {"null": 4.0, "httpcore": 1 / 5, "reference": 1 / 10}
_STREAM_TARGETS: Final[Mapping[Kind, float]] = {"null": 1.7, "httpcore": 1 / 3}
_SLOW: Final = ("httpcore", "reference")


def json_chat(lab: Lab, plan: Plan) -> list[Comparison]:
    """JSON chats of 1 KB in and 400 B out over 32 connections, with everything on.

    And without any proxy: load and backend must be able to do far more than what is between them.
    """
    comparisons = _comparisons("JSON chat", _JSON_TARGETS)
    control = Comparison("JSON chat", "direct / through teesign, wall time (control)", 0.5)
    contenders = _contenders(lab, _JSON_TARGETS)

    def chats(contender: Contender, requests: int) -> Window:
        work = json_load(
            contender.port,
            (contender.pid, lab.backend.pid),
            connections=32,
            requests=requests,
            warm_up=requests // 5,
        )
        return asyncio.run(work)

    for _ in range(plan.alternations):
        windows = {
            kind: chats(contender, plan.slow_requests if kind in _SLOW else plan.requests)
            for kind, contender in contenders.items()
        }
        _compare(comparisons, windows, "µs/request")
        alone = chats(lab.backend, plan.requests)
        proxied_time, direct_time = (window.seconds / window.done * 1e6 for window in (windows["teesign"], alone))
        control.samples.append(direct_time / proxied_time)
        control.details.append({"direct µs/request": direct_time, "teesign µs/request": proxied_time})
    return [*comparisons.values(), control]


def streams(lab: Lab, plan: Plan) -> list[Comparison]:
    """Event streams, 100 at once with 100 events of 200 B a second each."""
    comparisons = _comparisons("Event streams", _STREAM_TARGETS)
    contenders = _contenders(lab, _STREAM_TARGETS)
    for _ in range(plan.alternations):
        windows = {
            kind: asyncio.run(
                stream_load(
                    contender.port,
                    (contender.pid, lab.backend.pid),
                    streams=plan.streams // 10,
                    rate=100,
                    seconds=plan.seconds,
                    settle=plan.settle,
                )
            )
            for kind, contender in contenders.items()
        }
        _compare(comparisons, windows, "µs/event")
    return list(comparisons.values())


def many_streams(lab: Lab, plan: Plan) -> list[Comparison]:
    """Many streams against 20, each with 10 events of 200 B a second."""
    comparison = Comparison("Many streams", f"{plan.streams} streams / 20 streams, CPU", 1.25)
    contender = lab.contender("teesign")
    for _ in range(plan.alternations):
        many, few = (
            asyncio.run(
                stream_load(
                    contender.port,
                    (contender.pid, lab.backend.pid),
                    streams=streams,
                    rate=10,
                    seconds=plan.seconds,
                    settle=plan.settle,
                )
            )
            for streams in (plan.streams, 20)
        )
        _add(comparison, (f"{plan.streams} streams", many), ("20 streams", few), "µs/event")
    return [comparison]


def idle_connections(_lab: Lab, plan: Plan) -> list[Comparison]:
    """Requests one after the other, with many idle connections in the pool against one."""
    comparison = Comparison("Idle pooled connections", f"{plan.streams} idle / 1 idle, CPU", 1.1)
    with open_lab() as lab:  # of its own: the backend counts its connections
        contender = lab.contender("teesign")
        for _ in range(plan.alternations):
            few, many = (_with_idle(lab, contender, idle, plan.requests // 10) for idle in (1, plan.streams))
            _add(comparison, (f"{plan.streams} idle", many), ("1 idle", few), "µs/request")
    return [comparison]


def _with_idle(lab: Lab, contender: Contender, idle: int, requests: int) -> Window:
    """Measure requests while so many connections to the backend are idle, all the time."""
    _wait_until(lambda: lab.backend.connections() <= 1, "the pool does not close idle connections")

    async def main() -> Window:
        clients = await opened(contender.port, idle)
        target = CHAT_PATH + Wish(hold=1).query()
        request = request_head(target, len(QUESTION)) + QUESTION
        answers = asyncio.gather(*(client.ask(request) for client in clients))
        await asyncio.to_thread(_wait_until, lambda: lab.backend.held() == idle, "the backend was not asked")
        await asyncio.to_thread(lab.backend.release)
        await answers
        for client in clients:
            client.close()
        window = await json_load(
            contender.port, (contender.pid, lab.backend.pid), connections=1, requests=requests, warm_up=50
        )
        left = await asyncio.to_thread(lab.backend.connections)
        if left < idle:
            raise BenchmarkError(f"Of {idle} idle connections {left} are left: they expired while this was measured.")
        return window

    return asyncio.run(main())


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(otherwise)
        time.sleep(0.05)


def _contenders(lab: Lab, targets: Mapping[Kind, float]) -> dict[Kind, Contender]:
    kinds: tuple[Kind, ...] = ("teesign", *targets)
    return {kind: lab.contender(kind) for kind in kinds}


def _comparisons(row: str, targets: Mapping[Kind, float]) -> dict[Kind, Comparison]:
    return {kind: Comparison(row, f"teesign / {kind}, CPU", target) for kind, target in targets.items()}


def _compare(comparisons: Mapping[Kind, Comparison], windows: Mapping[Kind, Window], unit: str) -> None:
    """Add the ratios of one alternation."""
    for kind, comparison in comparisons.items():
        _add(comparison, ("teesign", windows["teesign"]), (kind, windows[kind]), unit)


def _add(comparison: Comparison, ours: tuple[str, Window], theirs: tuple[str, Window], unit: str) -> None:
    """Add the ratio of one alternation, and how busy everything was: load and backend must not be what is measured."""
    window = ours[1]
    comparison.samples.append(_cost(window) / _cost(theirs[1]))
    comparison.details.append(
        {
            f"{ours[0]} {unit}": _cost(window),
            f"{theirs[0]} {unit}": _cost(theirs[1]),
            "proxy busy": window.cpu[0] / window.seconds,
            "backend busy": window.cpu[1] / window.seconds,
            "load busy": window.own_cpu / window.seconds,
            f"{ours[0]} per s": window.done / window.seconds,
            f"{theirs[0]} per s": theirs[1].done / theirs[1].seconds,
        }
    )


def _cost(window: Window) -> float:
    """Return CPU microseconds for each thing done."""
    return window.cpu[0] / window.done * 1e6
