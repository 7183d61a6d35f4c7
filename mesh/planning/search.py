"""Dynamic programming over (cut, devices used, last device): the best way to every such state.

One kernel serves every objective: what a way costs is either its largest price (a period) or the sum
of its prices (a latency). With C cuts and D devices it takes C*C*D*2^D steps, done in rows by NumPy,
so it is meant for up to 8 devices and a few hundred cuts. Nothing is approximated: a way's price
depends on what came before only through the state, also with arbitrary links between each pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mesh.planning.arcs import Seconds

Combine = Callable[[Seconds, Seconds], Seconds]
"""How prices add up along a way: `np.maximum` or `np.add`."""

Way = tuple[tuple[int, int, int], ...]
"""Stages in running order as (device index, from-cut index, to-cut index)."""


@dataclass(frozen=True, eq=False)
class Table:
    """Best price of every state; a set of devices is a bit mask."""

    value: Seconds
    """(2^D, D, C)"""
    from_cut: NDArray[np.int32]
    from_device: NDArray[np.int32]

    def price(self, used: int, last: int) -> float:
        """Of the best way to the last cut that uses exactly `used` and ends on device `last`."""
        return float(self.value[used, last, -1])

    def way(self, used: int, last: int) -> Way:
        """The stages of that way."""
        stages: list[tuple[int, int, int]] = []
        cut = self.value.shape[2] - 1
        while used:
            start = int(self.from_cut[used, last, cut])
            before = int(self.from_device[used, last, start]) if start else 0
            stages.append((last, start, cut))
            used, last, cut = used & ~(1 << last), before, start
        return tuple(reversed(stages))


def search(own: Seconds, between: Seconds, combine: Combine, most_stages: int, head: int | None) -> Table:
    """Fill the table for segment prices `own` (D, C, C) and link prices `between` (D, D, C).

    `own[d, p, q]` is infinite where segment (p, q) may not be on device d. Ways have at most
    `most_stages` stages and begin on device `head` if it is given.
    """
    devices, cuts = own.shape[0], own.shape[1]
    shape = (1 << devices, devices, cuts)
    value = np.full(shape, np.inf)
    from_cut = np.zeros(shape, dtype=np.int32)
    from_device = np.zeros(shape, dtype=np.int32)
    columns = np.arange(cuts)
    for device in range(devices):
        if head is None or device == head:
            value[1 << device, device] = own[device, 0]
    for used in range(1, 1 << devices):
        if used.bit_count() >= most_stages or not np.isfinite(value[used]).any():
            continue
        for device in range(devices):
            if used >> device & 1:
                continue
            arrivals = combine(value[used], between[:, device])
            came_from = arrivals.argmin(axis=0)
            ways = combine(arrivals[came_from, columns][:, None], own[device])
            start = ways.argmin(axis=0)
            grown = used | 1 << device
            value[grown, device] = ways[start, columns]
            from_cut[grown, device] = start
            from_device[grown, device] = came_from
    return Table(value, from_cut, from_device)
