"""Cost against concurrency: for each request over more and more connections, and for each event of more streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .contenders import Contender, Kind, Lab
from .load import Window, json_load, stream_load
from .plan import Plan

__all__ = ["Curve", "draw", "measure"]

KINDS: Final[tuple[Kind, ...]] = ("null", "teesign", "httpcore")
_STYLES: Final = {"null": "o:", "teesign": "s-", "httpcore": "^--"}
_NAMES: Final = {"null": "app that does nothing", "teesign": "teesign", "httpcore": "teesign over httpcore's pool"}


@dataclass(frozen=True)
class Curve:
    """One contender's costs.

    Attributes:
        unit: what the cost is for: "request" or "event".
        kind: the contender.
        concurrency: how many connections, or streams, at once.
        cost: CPU microseconds of the contender for each request or event, beside each of them.
    """

    unit: str
    kind: Kind
    concurrency: Sequence[int]
    cost: Sequence[float]

    def as_json(self) -> dict[str, Any]:
        """Return everything that is known of it."""
        return dict(vars(self))


def measure(lab: Lab, plan: Plan) -> list[Curve]:
    """Measure every curve once; at each concurrency, the contenders one after the other."""

    def chats(contender: Contender, connections: int) -> Window:
        requests = plan.slow_requests if contender.kind == "httpcore" else plan.requests
        work = json_load(
            contender.port, (contender.pid,), connections=connections, requests=requests // 3, warm_up=requests // 10
        )
        return asyncio.run(work)

    def streams(contender: Contender, count: int) -> Window:
        work = stream_load(
            contender.port, (contender.pid,), streams=count, rate=10, seconds=plan.seconds / 2, settle=plan.settle
        )
        return asyncio.run(work)

    return [
        *_curves(lab, "request", plan.connection_counts, chats),
        *_curves(lab, "event", plan.stream_counts, streams),
    ]


def _curves(lab: Lab, unit: str, concurrency: Sequence[int], work: Callable[[Contender, int], Window]) -> list[Curve]:
    costs: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    for count in concurrency:
        for kind in KINDS:
            window = work(lab.contender(kind), count)
            costs[kind].append(window.cpu[0] / window.done * 1e6)
    return [Curve(unit, kind, concurrency, costs[kind]) for kind in KINDS]


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw the curves, as SVG or whatever else the file's name ends in."""
    # Only those who want a plot need it; it takes longer to import than everything else.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "teesign", "font.size": 9})
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, unit, across in zip(
        figure.subplots(1, 2), ("request", "event"), ("connections", "streams, 10 events/s each"), strict=True
    ):
        for curve in curves:
            if curve.unit == unit:
                axes.plot(curve.concurrency, curve.cost, _STYLES[curve.kind], label=_NAMES[curve.kind], markersize=4)
        axes.set(xscale="log", yscale="log", xlabel=across, ylabel=f"CPU µs per {unit}")
        axes.grid(which="both", alpha=0.2)
        axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
