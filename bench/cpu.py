"""What processes have used, from /proc: CPU seconds and memory."""

from __future__ import annotations

import os
from pathlib import Path

from writebehind_worker.embedded.process import processes

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int, *, with_reaped: bool = False) -> float:
    """Of the process with all its threads; ``with_reaped``: and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(map(int, fields[11 : 15 if with_reaped else 13])) / _TICKS_PER_S


def family_cpu_s(pid: int) -> float:
    """Of the process and all its children, those that have ended too."""
    children = [child for child, parent, _ in processes() if parent == pid]
    return cpu_s(pid, with_reaped=True) + sum(map(_cpu_if_it_lives, children))


def peak_mib(pid: int) -> float:
    """The most memory that the process has had, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _cpu_if_it_lives(pid: int) -> float:
    try:
        return cpu_s(pid)
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0.0
