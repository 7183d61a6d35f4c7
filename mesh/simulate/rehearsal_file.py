"""Rehearsal files: what happens to a deployment while `mesh simulate` runs it, as TOML text.

    seed = 1              # of all chance; the same seed is the same run
    seconds = 60          # of virtual time
    rate = 30             # frames per second that the source offers; left out: as many as are taken
    live = true           # newest frame wins; false (unless given): every frame is answered and the source waits

    [noise]
    compute = 0.1         # standard deviation of computing times, as a share of them
    link = "1ms"          # a message takes up to so much longer
    loss = 0.01           # share of messages that are lost and sent again after 200 ms

    [[event]]
    at = "10s"
    device = "board-2"
    what = "leave"        # leave: silent at once, as with a pulled plug; crash: the process, not the machine; return;
    factor = 3            # slow: computes `factor` times as long from then on (1: as before)

Everything is optional but `at`, `device` and `what` of an event. Unknown keys are errors.
"""

from __future__ import annotations

import difflib
import enum
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mesh.core.fleet_file import parse_seconds
from mesh.errors import UsageError

MAX_CHARACTERS = 64 * 1024
MAX_EVENTS = 1000
MAX_SECONDS = 24 * 3600.0
"""A day in virtual time takes minutes."""

MAX_RATE = 100_000.0
MAX_FACTOR = 1000.0
MAX_LOSS = 0.5
"""Above it a message would be sent again and again."""


class Kind(enum.Enum):
    LEAVE = "leave"
    CRASH = "crash"
    RETURN = "return"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Incident:
    at: float
    device: str
    """By its name in the fleet file."""
    kind: Kind
    factor: float = 1.0
    """Of computing times, for SLOW."""


@dataclass(frozen=True, slots=True)
class RehearsalPlan:
    """What a rehearsal file says; by default a quiet half minute under full load."""

    seed: int = 1
    seconds: float = 30.0
    rate: float | None = None
    is_live: bool = False
    compute_noise: float = 0.0
    link_noise_seconds: float = 0.0
    loss: float = 0.0
    incidents: tuple[Incident, ...] = ()


def parse_rehearsal(text: str, devices: Collection[str]) -> RehearsalPlan:
    """What `text` says about `devices`; raises `UsageError` that names the table and the key."""
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"a scenario file has at most {MAX_CHARACTERS} characters, this one has {len(text)}")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the scenario file is not TOML: {str(error)[:200]}") from None
    whole = _Table(document, "the scenario file", ("seed", "seconds", "rate", "live", "noise", "event"))
    noise = _Table(document.get("noise", {}), "[noise]", ("compute", "link", "loss"))
    events = document.get("event", [])
    if not isinstance(events, list) or len(events) > MAX_EVENTS:
        raise UsageError(f"the scenario file: event must be up to {MAX_EVENTS} [[event]] tables")
    seconds = whole.number("seconds", 30.0, 0.1, MAX_SECONDS)
    incidents = [_parse_incident(table, number, devices, seconds) for number, table in enumerate(events, start=1)]
    return RehearsalPlan(
        seed=whole.whole("seed", 1),
        seconds=seconds,
        rate=whole.number("rate", 0.0, 0.001, MAX_RATE) if "rate" in whole.values else None,
        is_live=whole.truth("live", False),
        compute_noise=noise.number("compute", 0.0, 0.0, 2.0),
        link_noise_seconds=noise.seconds("link", 0.0),
        loss=noise.number("loss", 0.0, 0.0, MAX_LOSS),
        incidents=tuple(sorted(incidents, key=lambda incident: incident.at)),
    )


def _parse_incident(table: object, number: int, devices: Collection[str], most: float) -> Incident:
    where = f"event {number}"
    known = _Table(table, where, ("at", "device", "what", "factor"))
    for key in ("at", "device", "what"):
        if key not in known.values:
            raise UsageError(f"{where} has no {key}", hint='for example at = "10s", device = "pi-1", what = "leave"')
    at = known.seconds("at", 0.0)
    if at > most:
        raise UsageError(f"{where}: at is {at:g} s, after the end of the run at {most:g} s", hint="raise `seconds`")
    device = known.values["device"]
    if not isinstance(device, str) or device not in devices:
        names = ", ".join(devices)
        raise UsageError(f"{where}: there is no device {str(device)[:80]!r} that computes", hint=f"there are: {names}")
    what = known.values["what"]
    kinds = [kind.value for kind in Kind]
    if what not in kinds:
        raise UsageError(f"{where}: what is {str(what)[:40]!r}", hint=f"one of {', '.join(kinds)}")
    kind = Kind(what)
    if (kind is Kind.SLOW) != ("factor" in known.values):
        raise UsageError(f'{where}: factor belongs to what = "slow", and only to it')
    return Incident(at, device, kind, known.number("factor", 1.0, 1 / MAX_FACTOR, MAX_FACTOR))


class _Table:
    """One TOML table with known keys, read key by key."""

    def __init__(self, values: object, where: str, keys: Collection[str]) -> None:
        if not isinstance(values, Mapping):
            raise UsageError(f"{where} must be a table")
        for key in values:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}"
                raise UsageError(f"{where}: unknown key {key[:80]!r}", hint=hint)
        self.values: Mapping[str, object] = values
        self.where = where

    def number(self, key: str, default: float, least: float, most: float) -> float:
        value = self.values.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or (key in self.values and not least <= value <= most):  # type: ignore[arg-type, operator]
            raise UsageError(f"{self.where}: {key} must be a number from {least:g} to {most:g}, not {str(value)[:80]}")
        return float(value)  # type: ignore[arg-type]

    def whole(self, key: str, default: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise UsageError(f"{self.where}: {key} must be a whole number of 0 or more, not {str(value)[:80]}")
        return value

    def truth(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise UsageError(f"{self.where}: {key} must be true or false, not {str(value)[:80]}")
        return value

    def seconds(self, key: str, default: float) -> float:
        try:
            return parse_seconds(self.values[key]) if key in self.values else default
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{self.where}: {key} {error}, not {str(self.values[key])[:80]!r}") from None
