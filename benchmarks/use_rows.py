"""Rows about what else the proxy uses: memory, the time to the first token, and the time to start."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Final

from .contenders import Contender, Lab
from .load import first_events, json_load, stream_load, upload
from .plan import Plan
from .report import Comparison

__all__ = ["big_upload", "first_token", "open_streams", "start"]

_MB: Final = 1_000_000


def big_upload(lab: Lab, plan: Plan) -> list[Comparison]:
    """One multipart upload: by how much the peak of resident memory grows."""
    comparison = Comparison("Upload", f"peak RSS, {plan.upload // _MB} MB upload", 16, "MB")
    for _ in range(plan.alternations):
        # A fresh proxy each time: what one upload has left behind would hide what the next one takes.
        with lab.running("teesign") as contender:
            asyncio.run(upload(contender.port, _MB))
            contender.reset_peak()
            before = contender.memory("VmRSS")
            asyncio.run(upload(contender.port, plan.upload))
            peak = contender.memory("VmHWM")
        comparison.samples.append((peak - before) / _MB)
        comparison.details.append({"before MB": before / _MB, "peak MB": peak / _MB})
    return [comparison]


def open_streams(lab: Lab, plan: Plan) -> list[Comparison]:
    """Many open streams: by how much resident memory grows for each."""
    comparison = Comparison("Open streams", f"RSS, {plan.streams} streams", 60, "KB/stream")
    for _ in range(plan.alternations):
        with lab.running("teesign") as contender:
            asyncio.run(json_load(contender.port, (), connections=1, requests=50, warm_up=1))
            before, after = contender.memory("VmRSS"), _memory_with_streams(contender, plan.streams)
        comparison.samples.append((after - before) / plan.streams / 1000)
        comparison.details.append({"before MB": before / _MB, "open MB": after / _MB})
    return [comparison]


def _memory_with_streams(contender: Contender, streams: int) -> int:
    seen: list[int] = []
    asyncio.run(
        stream_load(
            contender.port,
            (),
            streams=streams,
            rate=2,
            seconds=0.5,
            settle=1.0,
            look=lambda: seen.append(contender.memory("VmRSS")),
        )
    )
    return seen[0]


def first_token(lab: Lab, plan: Plan) -> list[Comparison]:
    """The time to the first event over 20 streams, through the proxy and direct: what the median grows by."""
    comparison = Comparison("First token", "added to the median, 20 streams", 1.0, "ms")
    contender = lab.contender("teesign")
    for _ in range(plan.alternations):
        proxied, direct = (
            statistics.median(asyncio.run(first_events(port, streams=20, seconds=plan.seconds)))
            for port in (contender.port, lab.backend.port)
        )
        comparison.samples.append((proxied - direct) * 1000)
        comparison.details.append({"through the proxy ms": proxied * 1000, "direct ms": direct * 1000})
    return [comparison]


def start(lab: Lab, plan: Plan) -> list[Comparison]:
    """How long `import teesign` takes, over bare Python, and `teesign serve` until it answers."""
    importing = Comparison("Import", "import teesign, over bare Python", 120, "ms")
    serving = Comparison("Start", "teesign serve until it answers", 1000, "ms")
    for _ in range(plan.alternations):
        bare, imported = (_milliseconds_of(program) for program in ("pass", "import teesign"))
        importing.samples.append(imported - bare)
        importing.details.append({"import teesign ms": imported, "bare ms": bare})
        serving.samples.append(_milliseconds_until_ready(lab))
    return [importing, serving]


def _milliseconds_of(program: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603 - programs of our own
    return (time.perf_counter() - begun) * 1000


def _milliseconds_until_ready(lab: Lab) -> float:
    begun = time.perf_counter()
    with lab.running("teesign") as contender:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{contender.port}/version") as answer:
                    answer.read()
                return (time.perf_counter() - begun) * 1000
            except urllib.error.URLError:
                time.sleep(0.005)
