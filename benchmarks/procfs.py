"""What a server's processes use, from /proc: CPU time of every thread to the nanosecond, and memory.

Linux only. A server is a tree of processes, and a process is a set of threads, which come and go: CPU time is counted
for each thread, and the difference of two readings is taken thread by thread, so that one that ended in between takes
away only what it used since the first reading.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["CpuTimes", "cpu_seconds", "cpu_times", "memory", "processes", "reset_peak"]

CpuTimes = dict[tuple[int, str], int]
"""Nanoseconds on a CPU by process and thread."""


def processes(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [root]
    for pid in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_times(root: int) -> CpuTimes:
    """Return the CPU time that each thread of a server has used."""
    return dict(_thread_times(root))


def _thread_times(root: int) -> Iterator[tuple[tuple[int, str], int]]:
    for pid in processes(root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                yield (pid, thread.name), int((thread / "schedstat").read_bytes().split()[0])


def cpu_seconds(before: CpuTimes, after: CpuTimes) -> float:
    """Return the CPU seconds between two readings."""
    return sum(used - before.get(thread, 0) for thread, used in after.items()) / 1e9


def memory(root: int, field: str) -> int:
    """Return a figure from the status of a server's processes, summed: `VmRSS` or `VmHWM`, in bytes."""
    return sum(_status_field(pid, field) for pid in processes(root))


def _status_field(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak(root: int) -> None:
    """Have `VmHWM` start again from what is resident now."""
    for pid in processes(root):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
