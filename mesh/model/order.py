"""The order of operator groups: any topological order is correct, a good one keeps cuts narrow and balanced.

A cut carries whatever is alive at its position, so the order decides which cuts exist. Several
candidates are made and scored by how evenly the model can be cut into stages through few tensors.
Pure; called by `mesh.model.summarise`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

MAX_REORDERED_GROUPS = 3000
"""Larger graphs keep the order of the file; the greedy search looks at every ready group at each step."""

MAX_CONSIDERED = 64
"""Ready groups that the greedy search looks at, the latest ones: thousands of equal branches need no thousand looks."""

SCORED_STAGES = (2, 4)
SCORED_TENSORS = (1, 2, 3, 6)
"""Balance is scored for these numbers of stages and of tensors across a cut."""

UNCARRYABLE = 1 << 20
"""Weight of a live tensor that no frame can carry, above any count of tensors."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What ordering needs to know of one group."""

    reads: tuple[str, ...]
    """Tensors from other groups or from the model's inputs."""
    makes: tuple[str, ...]
    """Tensors that other groups or the model's outputs read."""
    flops: int


@dataclass(frozen=True, slots=True)
class Life:
    """A tensor's life in one order: it is live at positions `[born, dies]`."""

    name: str
    born: int
    dies: int


def lives(
    units: Sequence[Unit], order: Sequence[int], inputs: Sequence[str], outputs: Sequence[str]
) -> dict[str, Life]:
    """Every tensor's life when `units` run in `order`.

    A tensor made by the group at place `i` is born at position `i + 1`; one last read by the group
    at place `j` is live up to position `j`; outputs are live to the end. Inputs are born at 0 and
    unread ones are live at 0 only.
    """
    born = dict.fromkeys(inputs, 0)
    dies = dict.fromkeys(inputs, 0)
    for place, index in enumerate(order):
        for name in units[index].reads:
            dies[name] = place
        for name in units[index].makes:
            born[name] = place + 1
            dies[name] = place + 1
    for name in outputs:
        if name in born:
            dies[name] = len(order)
    return {name: Life(name, born[name], dies[name]) for name in born}


def choose_order(
    units: Sequence[Unit], inputs: Sequence[str], outputs: Sequence[str], sizes: Mapping[str, int | None]
) -> list[int]:
    """The best of several topological orders of `units`, which come in one; ties keep the given order.

    Args:
        units: Groups in a topological order.
        inputs: The model's inputs.
        outputs: The model's outputs that groups make or that are inputs.
        sizes: Bytes of each tensor; None for one that no frame can carry.
    """
    given = list(range(len(units)))
    if len(units) <= 2 or len(units) > MAX_REORDERED_GROUPS:
        return given
    candidates = [
        given,
        _greedy(units, inputs, outputs, {name: size or 0 for name, size in sizes.items()}),
        _greedy(units, inputs, outputs, {}),
        _depth_first(units),
    ]
    best, best_score = given, _score(units, given, inputs, outputs, sizes)
    for order in candidates[1:]:
        score = _score(units, order, inputs, outputs, sizes)
        if score > best_score:
            best, best_score = order, score
    return best


def _greedy(
    units: Sequence[Unit], inputs: Sequence[str], outputs: Sequence[str], sizes: Mapping[str, int]
) -> list[int]:
    """Always run the ready group after which the least is alive; of equals, one that follows the latest."""
    left = dict.fromkeys(inputs, 0)
    for unit in units:
        for name in unit.reads:
            left[name] = left.get(name, 0) + 1
    for name in outputs:
        left[name] = left.get(name, 0) + 1
    waiting, followers, ready = _dependencies(units)
    recency = dict.fromkeys(ready, 0)
    order: list[int] = []
    while ready:

        def growth(index: int) -> tuple[int, int, int]:
            made = sum(sizes.get(name, 1) for name in units[index].makes)
            freed = sum(sizes.get(name, 1) for name in units[index].reads if left[name] == 1)
            return made - freed, -recency[index], index

        chosen = min(ready[-MAX_CONSIDERED:], key=growth)
        ready.remove(chosen)
        order.append(chosen)
        for name in units[chosen].reads:
            left[name] -= 1
        for follower in followers[chosen]:
            waiting[follower] -= 1
            recency[follower] = len(order)
            if waiting[follower] == 0:
                ready.append(follower)
    return order


def _depth_first(units: Sequence[Unit]) -> list[int]:
    """Follow each branch to its end before the next: what became ready last runs first."""
    waiting, followers, ready = _dependencies(units)
    ready.reverse()
    order: list[int] = []
    while ready:
        chosen = ready.pop()
        order.append(chosen)
        for follower in reversed(followers[chosen]):
            waiting[follower] -= 1
            if waiting[follower] == 0:
                ready.append(follower)
    return order


def _dependencies(units: Sequence[Unit]) -> tuple[list[int], list[list[int]], list[int]]:
    """Per unit the number of units it waits for and those that wait for it; and the units that wait for none."""
    maker = {name: index for index, unit in enumerate(units) for name in unit.makes}
    waiting = [0] * len(units)
    followers: list[list[int]] = [[] for _ in units]
    for index, unit in enumerate(units):
        for source in sorted({maker[name] for name in unit.reads if name in maker}):
            waiting[index] += 1
            followers[source].append(index)
    return waiting, followers, [index for index, count in enumerate(waiting) if count == 0]


def _score(
    units: Sequence[Unit],
    order: Sequence[int],
    inputs: Sequence[str],
    outputs: Sequence[str],
    sizes: Mapping[str, int | None],
) -> tuple[float, float]:
    """Reachable balance, then narrowness: higher is better."""
    counts, live_bytes = _profile(units, order, inputs, outputs, sizes)
    work = [0, *accumulate(max(1, units[index].flops) for index in order)]
    balance = 0.0
    for tensors in SCORED_TENSORS:
        positions = [p for p in range(1, len(order)) if 0 < counts[p] <= tensors]
        for stages in SCORED_STAGES:
            balance += work[-1] / least_bottleneck(work, positions, stages)
    narrowness = -math.fsum(math.log2(1 + size) for size in live_bytes) / len(live_bytes)
    return round(balance, 1), narrowness


def _profile(
    units: Sequence[Unit],
    order: Sequence[int],
    inputs: Sequence[str],
    outputs: Sequence[str],
    sizes: Mapping[str, int | None],
) -> tuple[list[int], list[int]]:
    """Tensors and bytes alive at each position."""
    counts = [0] * (len(order) + 2)
    amounts = [0] * (len(order) + 2)
    for life in lives(units, order, inputs, outputs).values():
        size = sizes.get(life.name, 0)
        weight = UNCARRYABLE if size is None else 1
        counts[life.born] += weight
        counts[life.dies + 1] -= weight
        amounts[life.born] += size or 0
        amounts[life.dies + 1] -= size or 0
    return list(accumulate(counts))[: len(order) + 1], list(accumulate(amounts))[: len(order) + 1]


def least_bottleneck(work: Sequence[int], positions: Sequence[int], stages: int) -> int:
    """The least possible work of the largest of at most `stages` segments cut at `positions`.

    `work[p]` is the work before position `p`; `positions` are inner positions in ascending order.
    """
    marks = [work[position] for position in positions]
    low, high = max(1, -(-work[-1] // stages)), max(1, work[-1])
    while low < high:
        middle = (low + high) // 2
        if _fits(marks, work[-1], middle, stages):
            high = middle
        else:
            low = middle + 1
    return low


def _fits(marks: Sequence[int], total: int, limit: int, stages: int) -> bool:
    done = 0
    for _ in range(stages):
        if total - done <= limit:
            return True
        place = bisect_right(marks, done + limit) - 1
        if place < 0 or marks[place] <= done:
            return False
        done = marks[place]
    return False
