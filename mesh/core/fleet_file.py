"""Fleet files: a fleet of devices written down as TOML, for planning without the devices and for a lab of them.

`parse_fleet` is pure: text in, frozen values out. Whatever is wrong ends in a `UsageError` that names the
device and the key, before anyone has built anything. A fleet file lists tables:

    [[device]]
    name = "pi"          # letters a-z, digits, hyphens; with count = 3: pi-1, pi-2, pi-3
    count = 3            # 1 unless given
    role = "node"        # node (unless given), coordinator or client
    cpu = 0.5            # cores
    memory = "512MB"     # KB, MB, GB are powers of 1000; KiB, MiB, GiB of 1024
    rate = "100Mbit"     # of its network interface, both ways
    latency = "1ms"      # one way, that its interface adds to whatever it sends and to whatever it receives
    like = "pi-4"        # a measured profile that it computes like
    trusted = true       # whether it may see private streams
    air = "channel-1"    # devices with one name here share a radio channel
    watts_busy = 6.4     # drawn while computing, and while idle
    watts_idle = 2.7

Without `cpu`, `memory`, `rate` or `latency` a device has what its machine has.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mesh.core.ids import check_name
from mesh.errors import UsageError

MAX_FILE_CHARACTERS = 256 * 1024
"""Far above what a fleet of the largest size needs; keeps a wrong file from being parsed for minutes."""

MAX_DEVICES = 64
"""What one machine can stand in for, and far above what is planned exactly."""

MIN_CORES, MAX_CORES = 0.01, 1024.0
"""A hundredth of a core is the least that a scheduler grants (1 ms of every 100)."""

MIN_MEMORY_BYTES, MAX_MEMORY_BYTES = 1_000_000, 1 << 50

MIN_BITS_PER_SECOND, MAX_BITS_PER_SECOND = 1_000, 1_000_000_000_000

MAX_LATENCY_SECONDS = 10.0

MAX_WATTS = 100_000.0

BYTE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTE_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
BIT_UNITS = {"BIT": 1, "KBIT": 10**3, "MBIT": 10**6, "GBIT": 10**9}
SECOND_UNITS = {"US": 1e-6, "MS": 1e-3, "S": 1.0}
"""Read without regard to case: there is no other unit that one of them could be taken for."""

QUANTITY_PATTERN = re.compile(r"(?P<number>[0-9]{1,18}(\.[0-9]{1,9})?) ?(?P<unit>[A-Za-z]+)(?P<per_second>/s)?")


class Role(enum.Enum):
    NODE = "node"
    COORDINATOR = "coordinator"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class FleetDevice:
    """One device; None where the file leaves it to the machine."""

    name: str
    role: Role = Role.NODE
    cores: float | None = None
    memory_bytes: int | None = None
    bits_per_second: int | None = None
    latency_seconds: float = 0.0
    like: str | None = None
    trusted: bool = True
    air: str | None = None
    watts_busy: float | None = None
    watts_idle: float | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    devices: tuple[FleetDevice, ...]
    """In the order of the file; at least one is a node, and names are unique."""

    def device(self, name: str) -> FleetDevice | None:
        return next((device for device in self.devices if device.name == name), None)


def parse_fleet(text: str) -> Fleet:
    """The fleet that `text` (TOML) describes; raises `UsageError` naming device and key."""
    if len(text) > MAX_FILE_CHARACTERS:
        raise UsageError(f"a fleet file has at most {MAX_FILE_CHARACTERS} characters, this one has {len(text)}")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the fleet file is not TOML: {str(error)[:200]}") from None
    _refuse_unknown(document, ("device",), "the fleet file")
    tables = document.get("device")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError("the fleet file lists no devices", hint="write a [[device]] table for each kind of device")
    devices: list[FleetDevice] = []
    for number, table in enumerate(tables, start=1):
        devices.extend(_parse_device(table, number, MAX_DEVICES - len(devices)))
    _check_whole(devices)
    return Fleet(tuple(devices))


def parse_bytes(text: object) -> int:
    """ "512MB" to 512000000; raises `ValueError` saying how it is written."""
    return round(_quantity(text, BYTE_UNITS, 'a size such as "512MB"'))


def parse_bits_per_second(text: object) -> int:
    """ "100Mbit" to 100000000; raises `ValueError` saying how it is written."""
    return round(_quantity(text, BIT_UNITS, 'a rate such as "100Mbit"'))


def parse_seconds(text: object) -> float:
    """ "1ms" to 0.001; raises `ValueError` saying how it is written."""
    return _quantity(text, SECOND_UNITS, 'a time such as "1ms"')


def _quantity(text: object, units: Mapping[str, float], wanted: str) -> float:
    match = QUANTITY_PATTERN.fullmatch(text) if isinstance(text, str) else None
    unit = match["unit"].upper() if match else ""
    if match is None or unit not in units or (match["per_second"] and "BIT" not in unit):
        raise ValueError(f"must be {wanted}")
    return float(match["number"]) * units[unit]


def _cores(value: object) -> float:
    return _within(_number(value), MIN_CORES, MAX_CORES, "cores")


def _memory(value: object) -> int:
    return int(_within(parse_bytes(value), MIN_MEMORY_BYTES, MAX_MEMORY_BYTES, "bytes"))


def _rate(value: object) -> int:
    return int(_within(parse_bits_per_second(value), MIN_BITS_PER_SECOND, MAX_BITS_PER_SECOND, "bit per second"))


def _latency(value: object) -> float:
    return _within(parse_seconds(value), 0.0, MAX_LATENCY_SECONDS, "seconds")


def _watts(value: object) -> float:
    return _within(_number(value), 0.0, MAX_WATTS, "watts")


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("must be a whole number from 1")
    return value


def _role(value: object) -> Role:
    known = [role.value for role in Role]
    if value not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return Role(value)


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")
    try:
        return check_name(value, "name")
    except UsageError as error:
        raise ValueError(f"is no valid name: {error.hint}") from None


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a number")
    return value


def _within(value: float, least: float, most: float, unit: str) -> float:
    if not least <= value <= most:
        raise ValueError(f"must be between {least:g} and {most:g} {unit}")
    return value


READERS: dict[str, tuple[str, Callable[[object], Any]]] = {
    "name": ("name", _name),
    "role": ("role", _role),
    "cpu": ("cores", _cores),
    "memory": ("memory_bytes", _memory),
    "rate": ("bits_per_second", _rate),
    "latency": ("latency_seconds", _latency),
    "like": ("like", _name),
    "trusted": ("trusted", _flag),
    "air": ("air", _name),
    "watts_busy": ("watts_busy", _watts),
    "watts_idle": ("watts_idle", _watts),
}
"""Key of the file: (field of `FleetDevice`, what reads its value). `count` is the one key without a field."""


def _parse_device(table: Mapping[str, object], number: int, room: int) -> list[FleetDevice]:
    where = f"device {number}" if not isinstance(table.get("name"), str) else f"device {str(table['name'])[:80]!r}"
    _refuse_unknown(table, (*READERS, "count"), where)
    if "name" not in table:
        raise UsageError(f"{where} has no name", hint='add a line such as name = "pi"')
    count = _read(where, "count", table.get("count", 1), _count)
    values = {}
    for key, (field, reader) in READERS.items():
        if key in table:
            values[field] = _read(where, key, table[key], reader)
    if count > room:
        raise UsageError(f"{where}: count = {_show(count)} makes more than {MAX_DEVICES} devices")
    if values.get("watts_idle") is not None and values.get("watts_busy") is not None:
        _read(where, "watts_idle", values["watts_idle"], lambda watts: _not_above(watts, values["watts_busy"]))
    device = FleetDevice(**values)
    if count == 1:
        return [device]
    kept = {field.name: getattr(device, field.name) for field in fields(device)}
    names = [_read(where, "name", f"{device.name}-{copy}", _name) for copy in range(1, count + 1)]
    return [FleetDevice(**{**kept, "name": name}) for name in names]


def _not_above(idle: object, busy: float) -> object:
    if isinstance(idle, int | float) and idle > busy:
        raise ValueError(f"must not be above watts_busy ({busy:g})")
    return idle


def _read(where: str, key: str, value: object, reader: Callable[[object], Any]) -> Any:
    try:
        return reader(value)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{where}: {key} {error}, not {_show(value)}") from None


def _show(value: object) -> str:
    try:
        return repr(value)[:80]
    except ValueError:  # an integer of thousands of digits is not turned into text
        return "a number too large to show"


def _refuse_unknown(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"{where}: unknown key {key[:80]!r}", hint=hint)


def _check_whole(devices: list[FleetDevice]) -> None:
    twice = [name for name, times in Counter(device.name for device in devices).items() if times > 1]
    if twice:
        raise UsageError(f"device {twice[0]!r}: name is used more than once", hint="every device needs its own")
    if not any(device.role is Role.NODE for device in devices):
        raise UsageError('no device has role = "node"', hint="a fleet needs at least one device that computes")
