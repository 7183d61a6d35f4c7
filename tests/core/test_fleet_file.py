"""Fleet files: what is written is what is read, and whatever is wrong is named by device and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import fleet_file
from mesh.core.fleet_file import (
    Fleet,
    FleetDevice,
    Role,
    parse_bits_per_second,
    parse_bytes,
    parse_fleet,
    parse_seconds,
)
from mesh.errors import UsageError
from tests.architecture.source_tree import ROOT

EVERYTHING = """
[[device]]
name = "pi"
count = 2
role = "node"
cpu = 0.5
memory = "512MB"
rate = "100Mbit"
latency = "1ms"
like = "pi-4"
trusted = false
air = "channel-1"
watts_busy = 6.4
watts_idle = 3

[[device]]
name = "camera"
role = "client"
"""


def test_reads_everything() -> None:
    pi = FleetDevice(
        "pi-1", Role.NODE, 0.5, 512_000_000, 100_000_000, 0.001, "pi-4", False, "channel-1", 6.4, 3
    )  # fmt: skip
    fleet = parse_fleet(EVERYTHING)
    assert fleet.devices[0] == pi
    assert [device.name for device in fleet.devices] == ["pi-1", "pi-2", "camera"]
    assert fleet.devices[1].cores == 0.5
    assert fleet.devices[2] == FleetDevice("camera", Role.CLIENT)
    assert fleet.device("camera") is fleet.devices[2]
    assert fleet.device("pi") is None


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "fleets").glob("*.toml")), ids=lambda path: path.stem)
def test_examples_are_fleets(path: Path) -> None:
    fleet = parse_fleet(path.read_text())
    cores = sum(device.cores or 0 for device in fleet.devices)
    assert 0 < cores <= 1.6, "fits a machine of two cores"


def test_there_are_three_examples() -> None:
    assert len(list((ROOT / "scripts" / "fleets").glob("*.toml"))) == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [("512MB", 512_000_000), ("1 GiB", 1 << 30), ("1.5KiB", 1536), ("7B", 7), ("2tb", 2 * 10**12)],
)
def test_bytes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("100Mbit", 10**8), ("1.5 Gbit/s", 1_500_000_000), ("9600bit", 9600)])
def test_rates(text: str, value: int) -> None:
    assert parse_bits_per_second(text) == value


@pytest.mark.parametrize(("text", "value"), [("1ms", 0.001), ("250us", 0.00025), ("0s", 0.0)])
def test_times(text: str, value: float) -> None:
    assert parse_seconds(text) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "1", "1e3MB", "1MB/s", "١MB", " 1MB", "1  MB", "1Mbit", 512, None])
def test_no_bytes(text: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_bytes(text)


def table(**values: object) -> str:
    """One device table, "pi" unless named otherwise."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"name": "pi", **values}.items()]
    return "\n".join(["[[device]]", *lines, ""])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "lists no devices"),
        ("device = 3", "lists no devices"),
        ("device = []", "lists no devices"),
        ("[device]\nname='pi'", "lists no devices"),
        ("[[device]", "not TOML"),
        ("\x00", "not TOML"),
        ("[[device]]\nname='a'\nname='b'", "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
        ("x = " + "9" * 5000, "not TOML"),
        ("#" * (fleet_file.MAX_FILE_CHARACTERS + 1), "at most"),
        (table() + "\n[other]\n", "the fleet file: unknown key 'other'"),
        ("[[device]]\nrole = 'node'", "device 1 has no name"),
        (table(name="Pi"), "device 'Pi': name is no valid name"),
        (table(name="pi", cpus=1), "device 'pi': unknown key 'cpus' .did you mean cpu"),
        (table(zzz=1), "device 'pi': unknown key 'zzz' .there are name"),
        (table(name=3), "device 1: name must be text"),
        (table(role="worker"), "device 'pi': role must be one of node, coordinator, client, not 'worker'"),
        (table(cpu=-1), "device 'pi': cpu must be between"),
        (table(cpu=0), "device 'pi': cpu must be between"),
        (table(cpu="2"), "device 'pi': cpu must be a number, not '2'"),
        (table(cpu=True), "device 'pi': cpu must be a number"),
        ("[[device]]\nname='pi'\ncpu = nan", "device 'pi': cpu must be a number"),
        ("[[device]]\nname='pi'\ncpu = inf", "device 'pi': cpu must be a number"),
        (f"[[device]]\nname='pi'\ncpu = 0x{'f' * 5000}", "device 'pi': cpu .*a number too large to show"),
        (f"[[device]]\nname='pi'\ncount = 0x{'f' * 5000}", "device 'pi': count = a number too large to show"),
        (table(memory="512"), "device 'pi': memory must be a size"),
        (table(memory=512), "device 'pi': memory must be a size"),
        (table(memory="10KB"), "device 'pi': memory must be between"),
        (table(memory="999999999999TB"), "device 'pi': memory must be between"),
        (table(rate="-100Mbit"), "device 'pi': rate must be a rate"),
        (table(rate="0Mbit"), "device 'pi': rate must be between"),
        (table(rate="12MB"), "device 'pi': rate must be a rate"),
        (table(latency="1"), "device 'pi': latency must be a time"),
        (table(latency="11s"), "device 'pi': latency must be between"),
        (table(count=0), "device 'pi': count must be a whole number from 1"),
        (table(count=1.5), "device 'pi': count must be a whole number from 1"),
        (table(count=True), "device 'pi': count must be a whole number from 1"),
        (table(count=1_000_000), "device 'pi': count = 1000000 makes more than 64 devices"),
        (table(count=60) + table(name="b", count=5), "device 'b': count = 5 makes more than 64"),
        (table(name="a" * 63, count=2), "name is no valid name"),
        (table(trusted="yes"), "device 'pi': trusted must be true or false"),
        (table(like=[1]), "device 'pi': like must be text"),
        (table(watts_busy=-1), "device 'pi': watts_busy must be between"),
        (table(watts_busy=1, watts_idle=2), "device 'pi': watts_idle must not be above watts_busy"),
        (table() + table(), "device 'pi': name is used more than once"),
        (table(count=2) + table(name="pi-2"), "device 'pi-2': name is used more than once"),
        (table(role="client"), 'no device has role = "node"'),
    ],
)
def test_refuses(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_fleet(text)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=2)
)


def to_toml(value: object) -> str:
    if value is None:
        return "{}"
    return str(value).lower() if isinstance(value, float) else json.dumps(value)


@given(st.dictionaries(st.sampled_from([*fleet_file.READERS, "count", "other"]), VALUES))
def test_nonsense_is_a_usage_error(values: dict[str, object]) -> None:
    """Whatever stands in a table: a fleet or a `UsageError`, nothing else."""
    text = "\n".join(["[[device]]", *(f"{key} = {to_toml(value)}" for key, value in values.items())])
    try:
        fleet = parse_fleet(text)
    except UsageError as error:
        assert error.message
    else:
        assert fleet.devices


@given(st.text(max_size=200))
def test_any_text_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_fleet(text)


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
DEVICES = st.builds(
    FleetDevice,
    name=NAMES,
    role=st.sampled_from(Role),
    cores=st.none() | st.floats(0.01, 64.0),
    memory_bytes=st.none() | st.integers(10**6, 2**40),
    bits_per_second=st.none() | st.integers(1000, 10**11),
    latency_seconds=st.sampled_from([0.0, 0.001, 0.0025, 1.0]),
    like=st.none() | NAMES,
    trusted=st.booleans(),
    air=st.none() | NAMES,
    watts_busy=st.none() | st.floats(10, 100),
    watts_idle=st.none() | st.floats(0, 10),
)


def write_device(device: FleetDevice) -> str:
    values = {
        "role": device.role.value,
        "cpu": device.cores,
        "memory": None if device.memory_bytes is None else f"{device.memory_bytes}B",
        "rate": None if device.bits_per_second is None else f"{device.bits_per_second}bit",
        "latency": f"{round(device.latency_seconds * 1e6)}us",
        "like": device.like,
        "trusted": device.trusted,
        "air": device.air,
        "watts_busy": device.watts_busy,
        "watts_idle": device.watts_idle,
    }
    return table(name=device.name, **{key: value for key, value in values.items() if value is not None})


@given(st.lists(DEVICES, min_size=1, max_size=5, unique_by=lambda device: device.name))
def test_what_is_written_is_read(devices: list[FleetDevice]) -> None:
    devices.append(FleetDevice("the-node"))
    read = parse_fleet("".join(write_device(device) for device in devices))
    assert read == Fleet(tuple(devices))
