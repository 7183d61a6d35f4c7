"""Dynamic programming over (devices used of each type, last kind of station, node): the best way to every such state.

One kernel serves every objective: what a way costs is either its largest price (a period) or the sum of
its prices (a latency, an energy at a given period). Nothing is approximated: a way's price depends on
what came before only through the state, also with arbitrary links between each pair of types. The work
is about the number of usage vectors, the product of (devices + 1) over the types, times the arcs; it is
done in rows by NumPy. A price limit removes arcs before the search, and with them most of the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mesh.planning.arcs import Kind, Seconds

STEPS_AT_ONCE = 1 << 16
"""Numbers that one NumPy operation makes: half a megabyte, which a core's cache holds."""

MOST_NODES_AT_ONCE = 16
"""More would work on many arcs that are not there, as they lead backwards."""

Combine = Callable[[Seconds, Seconds], Seconds]
"""How prices add up along a way: `np.maximum` or `np.add`."""

Way = tuple[tuple[int, int, int], ...]
"""Stages in running order as (kind index, from-node, to-node)."""


@dataclass(frozen=True, eq=False)
class Question:
    """What is searched: kinds of stations on `counts` devices per type, priced, at most `most` devices in all."""

    counts: tuple[int, ...]
    kinds: tuple[Kind, ...]
    own: Seconds
    """(K, N, N); infinite where a segment is not allowed."""
    between: Seconds
    """(K, K, N)"""
    combine: Combine
    most: int
    head: int | None = None
    """Type of the first stage; None for any."""

    @property
    def states(self) -> int:
        return math.prod(count + 1 for count in self.counts)

    @property
    def table_entries(self) -> int:
        return self.states * len(self.kinds) * int(self.own.shape[1])

    @property
    def steps(self) -> int:
        """About how many elementary steps `search` takes."""
        arcs = int(np.isfinite(self.own).sum())
        return self.states * (arcs + len(self.kinds) ** 2 * int(self.own.shape[1]))


@dataclass(frozen=True, eq=False)
class Table:
    """Best price of every state."""

    question: Question
    usage: NDArray[np.int64]
    """(S, T): devices of each type used."""
    strides: tuple[int, ...]
    """Index of a state is the sum of its usage times these."""
    value: Seconds
    """(S, K, N)"""

    def best(
        self,
        devices: int,
        tail: int | None = None,
        without: int | None = None,
        at_least: tuple[int, int] | None = None,
    ) -> tuple[float, int, int]:
        """Least price of ways to the last node on exactly so many devices, with its state and last kind.

        `tail` is the type that the last stage must be on, `without` a type that lacks one device, `at_least` a type and
        the number of its devices that must be used.
        """
        states = self.usage.sum(axis=1) == devices
        if without is not None:
            states &= self.usage[:, without] < self.question.counts[without]
        if at_least is not None:
            states &= self.usage[:, at_least[0]] >= at_least[1]
        rows = np.flatnonzero(states)
        last = [k for k, kind in enumerate(self.question.kinds) if tail is None or kind.type == tail]
        if not len(rows) or not last:
            return math.inf, 0, 0
        prices = self.value[rows][:, last, -1]
        row, column = np.unravel_index(int(prices.argmin()), prices.shape)
        return float(prices[row, column]), int(rows[row]), last[int(column)]

    def way(self, state: int, kind: int) -> Way:
        """The stages of the best way to `state` that ends on `kind`, worked out backwards."""
        question = self.question
        stages: list[tuple[int, int, int]] = []
        node = self.value.shape[2] - 1
        while True:
            station = question.kinds[kind]
            source = state - station.replicas * self.strides[station.type]
            if source == 0:
                stages.append((kind, 0, node))
                return tuple(reversed(stages))
            arrivals = question.combine(self.value[source], question.between[:, kind]).min(axis=0)
            start = int(question.combine(arrivals, question.own[kind, :, node]).argmin())
            stages.append((kind, start, node))
            kind_before = question.combine(self.value[source, :, start], question.between[:, kind, start])
            state, kind, node = source, int(kind_before.argmin()), start


def search(question: Question) -> Table:
    """Fill the table of `question`."""
    radix = [count + 1 for count in question.counts]
    usage = np.stack([axis.ravel() for axis in np.indices(radix)], axis=1)
    strides = tuple(math.prod(radix[index + 1 :]) for index in range(len(radix)))
    value = np.full((question.states, len(question.kinds), question.own.shape[1]), np.inf)
    totals = usage.sum(axis=1)
    spans = [_finite_spans(own) for own in question.own]
    for total in range(1, question.most + 1):
        level = np.flatnonzero(totals == total)
        for kind, station in enumerate(question.kinds):
            if total == station.replicas:
                if question.head in (None, station.type):
                    value[total * strides[station.type], kind] = question.own[kind, 0]
                continue
            targets = level[usage[level, station.type] >= station.replicas]
            sources = targets - station.replicas * strides[station.type]
            arrivals = _arrive(question, value, sources, kind)
            alive = np.isfinite(arrivals).any(axis=0)
            if alive.any():
                grown = _extend(question, arrivals[:, alive], kind, spans[kind])
                value[targets[alive], kind] = grown.T
    return Table(question, usage, strides, value)


def _finite_spans(own: Seconds) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every to-node, the first from-node that has an arc to it and one past the last; the first is past it if none.

    Axes of `own` are (from-node, to-node).
    """
    finite = np.isfinite(own)
    nodes = len(own)
    none = ~finite.any(axis=0)
    first = np.where(none, nodes, finite.argmax(axis=0))
    stop = np.where(none, 0, nodes - finite[::-1].argmax(axis=0))
    return first, stop


def _arrive(question: Question, value: Seconds, sources: NDArray[np.int64], kind: int) -> Seconds:
    """(N, sources): best price at which a frame reaches each node on its way to `kind`."""
    best = np.full((len(sources), value.shape[2]), np.inf)
    for before in range(len(question.kinds)):
        link = question.between[before, kind]
        if np.isfinite(link).any():
            np.minimum(best, question.combine(value[sources, before], link), out=best)
    return np.ascontiguousarray(best.T)


def _extend(
    question: Question, arrivals: Seconds, kind: int, spans: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Seconds:
    """(N, sources): best price of each node after one more stage of `kind`."""
    grown = np.full(arrivals.shape, np.inf)
    own = question.own[kind]
    nodes, sources = arrivals.shape
    width = max(1, min(MOST_NODES_AT_ONCE, STEPS_AT_ONCE // (nodes * sources)))
    for node in range(1, nodes, width):
        block = slice(node, node + width)
        first, stop = int(spans[0][block].min()), int(spans[1][block].max())
        if first < stop:
            ways = question.combine(arrivals[first:stop, None], own[first:stop, block, None])
            grown[block] = ways.min(axis=0)
    return grown
