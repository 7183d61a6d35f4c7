"""Costs: shares and estimates by hand, and every figure that makes no sense refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mesh.core.costs import ASSUMED_EFFICIENCY, Costs, DeviceCosts, Figure
from mesh.core.fleet import Handling, Link
from mesh.core.graph import Graph, OperatorGroup
from mesh.core.ids import NodeId, Sha256
from mesh.errors import UsageError

A, B, C = (NodeId(letter * 32) for letter in "abc")


def graph(*flops: int) -> Graph:
    groups = tuple(
        OperatorGroup(index, f"g{index}", ("Conv",), (index,), work, (), 0, (), ()) for index, work in enumerate(flops)
    )
    return Graph(Sha256("0" * 64), 0, (), (), groups, (), {}, {})


def measured(**changes: Any) -> Costs:
    given: dict[str, Any] = {
        "graph": graph(1_000_000_000, 3_000_000_000),
        "whole_model_seconds": {A: 0.4, B: None},
        "gflops": {A: 20.0, B: 10.0},
        "links": {(A, B): Link(0.001, 1e6), (B, A): Link(0.002, 2e6, measured=False)},
        "memory_bytes": {A: 1000, B: 2000},
    }
    return Costs.from_measurements(**{**given, **changes})


def test_measured_time_is_shared_by_work() -> None:
    costs = measured()
    assert costs.compute(A, 0, 1) == Figure(pytest.approx(0.1), True)
    assert costs.compute(A, 1, 2) == Figure(pytest.approx(0.3), True)
    assert costs.compute(A, 0, 2) == Figure(0.4, True)
    assert costs.compute(A, 1, 1).seconds == 0
    assert costs.device(B).memory_bytes == 2000


def test_unmeasured_device_is_scaled_from_a_measured_one() -> None:
    assert measured().compute(B, 0, 2) == Figure(pytest.approx(0.8), False)


def test_estimates_take_the_median_of_measured_devices() -> None:
    links = {(x, y): Link(0.0, 1e6) for x in (A, B, C) for y in (A, B, C) if x != y}
    costs = measured(
        whole_model_seconds={A: 0.4, B: 1.0, C: None},
        gflops={A: 20.0, B: 10.0, C: 1.0},
        links=links,
        memory_bytes={A: 1, B: 1, C: 1},
    )
    assert costs.compute(C, 0, 2).seconds == pytest.approx((8 + 10) / 2)


def test_without_any_measurement_operations_over_an_assumed_rate() -> None:
    costs = measured(whole_model_seconds={A: None, B: None})
    assert costs.compute(A, 0, 2) == Figure(pytest.approx(4 / 20 / ASSUMED_EFFICIENCY), False)


def test_a_profile_replaces_operations() -> None:
    assert measured(group_work=[1.0, 1.0]).compute(A, 0, 1).seconds == pytest.approx(0.2)


def test_a_model_without_operations_is_shared_evenly() -> None:
    assert measured(graph=graph(0, 0, 0, 0)).compute(A, 0, 1).seconds == pytest.approx(0.1)


def test_transfer_and_handling() -> None:
    costs = measured(handling={A: Handling(0.5, 0.25, measured=True)})
    assert costs.transfer(A, B, 1000) == Figure(pytest.approx(0.002), True)
    assert costs.transfer(B, A, 1000) == Figure(pytest.approx(0.0025), False)
    assert costs.transfer(A, A, 1000) == Figure(0.0, True)
    assert costs.handling(A, 4, sent=False) == costs.handling(A, 4, sent=True) == Figure(1.5, True)
    costs = measured(handling={A: Handling(0.5, 0.25, True, 0.125)})
    assert (costs.handling(A, 4, sent=False).seconds, costs.handling(A, 4, sent=True).seconds) == (1.5, 1.0)
    default = costs.handling(B, 0, sent=False)
    assert default.seconds > 0 and not default.measured


def test_a_sum_is_measured_only_if_all_of_it_is() -> None:
    assert Figure(1.0, True) + Figure(2.0, True) == Figure(3.0, True)
    assert not (Figure(1.0, True) + Figure(2.0, False)).measured


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("whole_model_seconds", lambda bad: {"whole_model_seconds": {A: bad, B: None}}),
        ("gflops", lambda bad: {"gflops": {A: bad, B: 10.0}}),
        ("bytes_per_second", lambda bad: {"links": {(A, B): Link(0.0, bad), (B, A): Link(0.0, 1.0)}}),
        ("memory_bytes", lambda bad: {"memory_bytes": {A: bad, B: 1}}),
    ],
)
def test_rates_and_times_must_be_above_zero(field: str, place: Any, bad: float) -> None:
    with pytest.raises(UsageError, match=field):
        measured(**place(bad))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("field", "place"),
    [
        ("latency_seconds", lambda bad: {"links": {(A, B): Link(bad, 1.0), (B, A): Link(0.0, 1.0)}}),
        ("message_seconds", lambda bad: {"handling": {A: Handling(message_seconds=bad)}}),
        ("byte_seconds", lambda bad: {"handling": {B: Handling(byte_seconds=bad)}}),
        ("sent_byte_seconds", lambda bad: {"handling": {B: Handling(sent_byte_seconds=bad)}}),
        ("group_work", lambda bad: {"group_work": [1.0, bad]}),
    ],
)
def test_costs_must_not_be_negative(field: str, place: Any, bad: float) -> None:
    with pytest.raises(UsageError, match=field):
        measured(**place(bad))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("links", {"links": {(A, B): Link(0.0, 1.0)}}),
        ("gflops", {"gflops": {A: 20.0}}),
        ("memory_bytes", {"memory_bytes": {A: 1}}),
        ("group_work has 1 entries", {"group_work": [1.0]}),
    ],
)
def test_what_is_missing_is_named(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=field):
        measured(**changes)


@pytest.mark.parametrize(
    ("prefix", "telling"),
    [((), "must begin with 0"), ((0.1, 0.2), "must begin with 0"), ((0.0, 0.2, 0.1), "below the one before")],
)
def test_prefix_sums_must_be_prefix_sums(prefix: tuple[float, ...], telling: str) -> None:
    with pytest.raises(UsageError, match=telling):
        Costs({A: DeviceCosts(prefix, 1, True)}, {})


def test_devices_must_cover_the_same_groups() -> None:
    links = {(A, B): Link(0.0, 1.0), (B, A): Link(0.0, 1.0)}
    with pytest.raises(UsageError, match="disagree on the number of groups"):
        Costs({A: DeviceCosts((0.0, 1.0), 1, True), B: DeviceCosts((0.0,), 1, True)}, links)


def test_unknown_devices_and_pairs_are_refused() -> None:
    costs = measured()
    with pytest.raises(UsageError, match="no costs are known"):
        costs.compute(C, 0, 1)
    with pytest.raises(UsageError, match="links"):
        costs.transfer(A, C, 1)
