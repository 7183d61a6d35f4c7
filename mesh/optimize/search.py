"""How few operators must stay in float, found by bisection. Pure: whoever calls says what passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Made = TypeVar("Made")


def fewest_in_float(order: Sequence[str], attempt: Callable[[frozenset[str]], Made | None]) -> Made | None:
    """What `attempt` made with the shortest beginning of `order` in float that passes; None where none does.

    `attempt` returns None for what fails the gate. Passing is taken to be monotone, so about log2(len(order)) + 1
    attempts are made; where it is not, what is returned has still passed. None and all operators are not tried.
    """
    low, high = 0, len(order) - 1  # `low` is known to fail, `high` is the most that leaves something quantised
    if high < 1:
        return None
    best = attempt(frozenset(order[:high]))
    if best is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        made = attempt(frozenset(order[:middle]))
        if made is None:
            low = middle
        else:
            best, high = made, middle
    return best
