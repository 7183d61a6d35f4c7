"""How much memory loading a model and running it takes, as growth of this very process: for children that do nothing
else.

Counted is what the process cannot share and the kernel cannot drop: anonymous pages. Library code and regions with
tensors are not the model's. The kernel keeps the peak of all resident pages only, so from that is taken what of them
is file and shared when one looks: look after each step, and the largest answer counts. Where the system does not tell
(no `/proc`, a kernel before 4.5), every answer is 0.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

STATUS = Path("/proc/self/status")
FORGET_PEAK = "5"
"""Written to `clear_refs`: the peak counts anew from what is resident now."""

_FIELDS = ("VmHWM", "RssAnon", "RssFile", "RssShmem")


class ResidentGrowth:
    """Counts from where it is made. Not for processes in which other threads take memory meanwhile."""

    def __init__(self, status: Path = STATUS) -> None:
        self._status = status
        with contextlib.suppress(OSError):  # then an earlier peak counts, too: too much rather than too little
            status.with_name("clear_refs").write_text(FORGET_PEAK)
        known = read_resident(status)
        self._before = known["RssAnon"] if known else 0
        self._peak_bytes = 0

    def look(self) -> int:
        """Bytes that were taken at most so far."""
        known = read_resident(self._status)
        if known:
            anonymous = max(known["RssAnon"], known["VmHWM"] - known["RssFile"] - known["RssShmem"])
            self._peak_bytes = max(self._peak_bytes, anonymous - self._before)
        return self._peak_bytes


def read_resident(status: Path) -> dict[str, int]:
    """Bytes by field of the kernel's; empty where one is missing."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return {}
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    if any(name not in told for name in _FIELDS):
        return {}
    return {name: int(told[name].split()[0]) << 10 for name in _FIELDS}
