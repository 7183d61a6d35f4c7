"""What can be wrong with a device on purpose, and how its link is made so. Pure.

Loss and cuts are classifier programs (`mesh.lab.bpf`) on the switch's end of the device's link: what comes in
there is what the device sends. Each call describes the whole of what a link shall be, so that faults may be
laid over each other, repeated and taken back in any order.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass

from mesh.core.fleet_file import MAX_BITS_PER_SECOND, MIN_BITS_PER_SECOND, parse_bits_per_second
from mesh.errors import UsageError
from mesh.lab.bpf import drop_all, drop_share
from mesh.lab.topology import Batch, LabDevice, Topology

MAX_FREEZE_SECONDS = 3600.0
"""Longer is a device that is switched off: kill."""


class Fault(enum.Enum):
    KILL = "kill"
    FREEZE = "freeze"
    CUT = "cut"
    CUT_IN = "cut-in"
    CUT_OUT = "cut-out"
    RATE = "rate"
    LOSS = "loss"
    HEAL = "heal"


WITH_VALUE = {Fault.FREEZE: "SECONDS", Fault.RATE: 'a rate such as "10Mbit"', Fault.LOSS: "PERCENT"}


@dataclass(frozen=True, slots=True)
class Faults:
    """Everything that lasts; a kill shows by the daemon's absence."""

    is_deaf: bool = False
    """Nothing reaches the device."""
    is_mute: bool = False
    """Nothing leaves the device."""
    loss_percent: float = 0.0
    bits_per_second: int | None = None
    """Instead of the fleet file's rate."""
    frozen_until: float | None = None
    """On the monotonic clock of the machine, in seconds."""

    def describe(self) -> list[str]:
        """In the words of the command that made them."""
        cut = {(True, True): "cut", (True, False): "cut-in", (False, True): "cut-out"}
        words = [cut[self.is_deaf, self.is_mute]] if self.is_deaf or self.is_mute else []
        words += [f"loss {self.loss_percent:g}"] if self.loss_percent else []
        words += [f"rate {self.bits_per_second}bit"] if self.bits_per_second is not None else []
        return words + (["freeze"] if self.frozen_until is not None else [])


def parse_fault(kind: str, value: str | None) -> tuple[Fault, float | None]:
    """The fault and its number (seconds, percent or bit per second); raises `UsageError` for nonsense."""
    try:
        fault = Fault(kind)
    except ValueError:
        known = ", ".join(each.value for each in Fault)
        raise UsageError(f"there is no fault {kind[:40]!r}", hint=f"one of {known}") from None
    if fault not in WITH_VALUE:
        if value is not None:
            raise UsageError(f"{kind} takes no value, not {value[:40]!r}")
        return fault, None
    if value is None:
        raise UsageError(f"{kind} needs {WITH_VALUE[fault]}")
    try:
        return fault, _number(fault, value)
    except ValueError as error:
        raise UsageError(f"{kind} {error}, not {value[:40]!r}") from None


def _number(fault: Fault, value: str) -> float:
    if fault is Fault.RATE:
        rate = parse_bits_per_second(value)
        if not MIN_BITS_PER_SECOND <= rate <= MAX_BITS_PER_SECOND:
            raise ValueError(f"must be between {MIN_BITS_PER_SECOND} and {MAX_BITS_PER_SECOND} bit per second")
        return rate
    try:
        number = float(value.removesuffix("%" if fault is Fault.LOSS else "s"))
    except ValueError:
        raise ValueError(f"needs {WITH_VALUE[fault]}") from None
    most = 100.0 if fault is Fault.LOSS else MAX_FREEZE_SECONDS
    if not math.isfinite(number) or not 0 < number <= most:
        raise ValueError(f"must be above 0 and at most {most:g}")
    return number


def add_fault(faults: Faults, fault: Fault, number: float | None, now: float) -> Faults:
    """`faults` with one more; `now` is the monotonic clock. Healing takes all back, a kill ends a freeze."""
    if fault is Fault.HEAL:
        return Faults()
    if fault is Fault.CUT:
        return dataclasses.replace(faults, is_deaf=True, is_mute=True)
    if fault is Fault.CUT_IN:
        return dataclasses.replace(faults, is_deaf=True)
    if fault is Fault.CUT_OUT:
        return dataclasses.replace(faults, is_mute=True)
    if fault is Fault.KILL or number is None:
        return dataclasses.replace(faults, frozen_until=None)
    if fault is Fault.LOSS:
        return dataclasses.replace(faults, loss_percent=number)
    if fault is Fault.RATE:
        return dataclasses.replace(faults, bits_per_second=round(number))
    return dataclasses.replace(faults, frozen_until=now + number)


def filter_batches(topology: Topology, device: LabDevice, faults: Faults) -> list[Batch]:
    """Cuts and loss of the device's link as `faults` say, whatever they were before."""
    where = f"dev {device.port}"
    # Replacing first: deleting fails where there is none.
    lines = [f"qdisc replace {where} clsact", f"qdisc delete {where} clsact"]
    directions = (("egress", faults.is_deaf), ("ingress", faults.is_mute))  # as the switch sees them
    programs = [
        (side, drop_all() if is_cut else drop_share(faults.loss_percent / 100))
        for side, is_cut in directions
        if is_cut or faults.loss_percent
    ]
    if programs:
        lines.append(f"qdisc replace {where} clsact")
    lines += [f'filter add {where} {side} bpf da bytecode "{program}"' for side, program in programs]
    return [Batch("tc", topology.switch_namespace, tuple(lines))]
