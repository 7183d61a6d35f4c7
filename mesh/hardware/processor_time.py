"""Processor time of this process and of all that it started: the daemon and its engines, which may be child processes.

Read from /proc, because the kernel tells a parent of its children's time only once they have ended. Source: proc(5),
`stat`, fields 14 and 15.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def processor_seconds(process: int, root: Path = Path("/proc")) -> float:
    """User and system time of `process` and of its descendants that live, in seconds."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for folder in root.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            # The second field is a name in parentheses, which may have any character in it.
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parent, user, system = int(fields[1]), int(fields[11]), int(fields[12])
        except (OSError, IndexError, ValueError):
            continue  # it has ended meanwhile
        ticks[int(folder.name)] = user + system
        children[parent].append(int(folder.name))
    total, waiting = 0, [process]
    while waiting:
        each = waiting.pop()
        total += ticks.get(each, 0)
        waiting += children[each]
    return total / TICKS_PER_S
