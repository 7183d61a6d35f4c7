"""Which variant of those that passed is best on one device, by ratios of times taken in turns. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.core.plan import FLOAT

CLEARLY_FASTER = 1.02
"""Two equal models differ by less in their median ratio; up to here float, which loses no accuracy, is chosen."""


def choose(measured: Mapping[str, tuple[float, int]]) -> tuple[str, str]:
    """The variant and why, from (speed relative to float, bytes) of all variants but float that passed the gate.

    Of those that are as fast as the fastest, the smallest.
    """
    if not measured:
        return FLOAT, "no other variant is offered"
    fastest, (best, _bytes) = max(measured.items(), key=lambda item: item[1][0])
    if best < CLEARLY_FASTER:
        how = "slower" if best < 1 else "no faster"
        return FLOAT, f"int8 is {how} here: {fastest}, the fastest, runs at {best:.2f} times the speed of float"
    equal = {name: size for name, (speed_up, size) in measured.items() if speed_up * CLEARLY_FASTER >= best}
    name = min(equal, key=lambda each: equal[each])
    how = "the fastest here" if len(equal) == 1 else "the smallest of the fastest here"
    return name, f"{how}: {measured[name][0]:.2f} times the speed of float"
