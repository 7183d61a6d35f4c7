"""Faults: how they are written, how they add up, and what the link is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.fleet_file import Fleet, FleetDevice
from mesh.errors import UsageError
from mesh.lab.bpf import drop_all, drop_share
from mesh.lab.faults import Fault, Faults, add_fault, filter_batches, parse_fault
from mesh.lab.topology import lay_out

NOW = 1000.0


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("kill", None, (Fault.KILL, None)),
        ("cut-in", None, (Fault.CUT_IN, None)),
        ("freeze", "2.5", (Fault.FREEZE, 2.5)),
        ("freeze", "5s", (Fault.FREEZE, 5.0)),
        ("loss", "30", (Fault.LOSS, 30.0)),
        ("loss", "0.5%", (Fault.LOSS, 0.5)),
        ("rate", "10Mbit", (Fault.RATE, 10_000_000)),
        ("heal", None, (Fault.HEAL, None)),
    ],
)
def test_reads(kind: str, value: str | None, expected: tuple[Fault, float | None]) -> None:
    assert parse_fault(kind, value) == expected


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        ("burn", None, "there is no fault 'burn' .one of kill, freeze"),
        ("cut", "3", "cut takes no value"),
        ("freeze", None, "freeze needs SECONDS"),
        ("freeze", "0", "above 0"),
        ("freeze", "nan", "above 0"),
        ("freeze", "soon", "freeze needs SECONDS, not 'soon'"),
        ("freeze", "1e9", "at most 3600"),
        ("loss", "101", "at most 100"),
        ("loss", "-1", "above 0"),
        ("rate", "10", "must be a rate"),
        ("rate", "0Mbit", "must be between"),
    ],
)
def test_refuses(kind: str, value: str | None, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_fault(kind, value)


NUMBERS = {Fault.FREEZE: 3.0, Fault.RATE: 1e6, Fault.LOSS: 10.0}


def afflict(*kinds: Fault) -> Faults:
    faults = Faults()
    for kind in kinds:
        faults = add_fault(faults, kind, NUMBERS.get(kind), NOW)
    return faults


def test_faults_add_up() -> None:
    assert afflict(Fault.CUT_IN, Fault.CUT_OUT) == afflict(Fault.CUT)
    assert afflict(Fault.CUT_IN, Fault.LOSS, Fault.RATE, Fault.FREEZE).describe() == [
        "cut-in", "loss 10", "rate 1000000bit", "freeze"
    ]  # fmt: skip
    assert afflict(Fault.FREEZE).frozen_until == NOW + 3.0
    assert afflict(Fault.FREEZE, Fault.KILL) == Faults(), "nothing is left that could stand still"


@given(st.lists(st.sampled_from(Fault)))
def test_healing_takes_everything_back(kinds: list[Fault]) -> None:
    assert afflict(*kinds, Fault.HEAL) == Faults()


@pytest.mark.parametrize(
    ("kinds", "egress", "ingress"),
    [
        ((), None, None),
        ((Fault.CUT,), drop_all(), drop_all()),
        ((Fault.CUT_IN,), drop_all(), None),  # what the switch sends to the device
        ((Fault.CUT_OUT,), None, drop_all()),
        ((Fault.LOSS,), drop_share(0.1), drop_share(0.1)),
        ((Fault.LOSS, Fault.CUT_IN), drop_all(), drop_share(0.1)),
        ((Fault.RATE, Fault.FREEZE), None, None),
    ],
)
def test_the_link_is_told_the_whole_of_it(kinds: tuple[Fault, ...], egress: str | None, ingress: str | None) -> None:
    topology = lay_out(Fleet((FleetDevice("a"),)), "x")
    (batch,) = filter_batches(topology, topology.devices[0], afflict(*kinds))
    filters = [line for line in batch.lines if line.startswith("filter")]
    expected = [(side, program) for side, program in (("egress", egress), ("ingress", ingress)) if program]
    assert filters == [f'filter add dev port1 {side} bpf da bytecode "{program}"' for side, program in expected]
    assert batch.lines[1] == "qdisc delete dev port1 clsact", "whatever was there before is gone"
    assert batch.namespace == topology.switch_namespace
