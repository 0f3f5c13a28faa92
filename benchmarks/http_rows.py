"""Rows about CPU time for each request and for each streamed chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from .contenders import Contender, Kind, Lab, lab
from .load import Window, json_load, stream_load
from .plan import Plan
from .report import Comparison

__all__ = ["json_chat", "streams"]

_JSON_TARGETS: Final[Mapping[Kind, float]] = {"null": 4.0, "httpcore": 1 / 5, "reference": 1 / 10}
_STREAM_TARGETS: Final[Mapping[Kind, float]] = {"null": 1.7, "httpcore": 1 / 3}
_SLOW: Final = ("httpcore", "reference")


def json_chat(plan: Plan) -> list[Comparison]:
    """JSON chats of 1 KB in and 400 B out over 32 connections, with everything on."""
    comparisons = _comparisons("JSON chat", _JSON_TARGETS)
    with lab() as bench:
        contenders = _contenders(bench, _JSON_TARGETS)
        for _ in range(plan.alternations):
            windows = {}
            for kind, contender in contenders.items():
                requests = plan.slow_requests if kind in _SLOW else plan.requests
                windows[kind] = asyncio.run(
                    json_load(
                        contender.port,
                        (contender.pid, bench.backend.pid),
                        connections=32,
                        requests=requests,
                        warm_up=requests // 5,
                    )
                )
            _compare(comparisons, windows, "µs/request")
    return list(comparisons.values())


def streams(plan: Plan) -> list[Comparison]:
    """Event streams, 100 at once with 100 events of 200 B a second each."""
    comparisons = _comparisons("Event streams", _STREAM_TARGETS)
    with lab() as bench:
        contenders = _contenders(bench, _STREAM_TARGETS)
        for _ in range(plan.alternations):
            windows = {
                kind: asyncio.run(
                    stream_load(
                        contender.port,
                        (contender.pid, bench.backend.pid),
                        streams=plan.streams // 10,
                        rate=100,
                        seconds=plan.seconds,
                    )
                )
                for kind, contender in contenders.items()
            }
            _compare(comparisons, windows, "µs/event")
    return list(comparisons.values())


def _contenders(bench: Lab, targets: Mapping[Kind, float]) -> dict[Kind, Contender]:
    kinds: tuple[Kind, ...] = ("teesign", *targets)
    return {kind: bench.start(kind) for kind in kinds}


def _comparisons(row: str, targets: Mapping[Kind, float]) -> dict[Kind, Comparison]:
    return {kind: Comparison(row, f"teesign / {kind}, CPU", target) for kind, target in targets.items()}


def _compare(comparisons: Mapping[Kind, Comparison], windows: Mapping[Kind, Window], unit: str) -> None:
    """Add the ratios of one alternation."""
    ours = windows["teesign"]
    for kind, comparison in comparisons.items():
        theirs = windows[kind]
        comparison.samples.append(_cost(ours) / _cost(theirs))
        comparison.details.append(
            {
                f"teesign {unit}": _cost(ours),
                f"{kind} {unit}": _cost(theirs),
                "teesign busy": ours.cpu[0] / ours.seconds,
                "backend busy": ours.cpu[1] / ours.seconds,
                "load busy": ours.own_cpu / ours.seconds,
            }
        )


def _cost(window: Window) -> float:
    """Return CPU microseconds for each thing done."""
    return window.cpu[0] / window.done * 1e6
