"""Bisection against trying every number, and the choice by measured speed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mesh.optimize.choosing import CLEARLY_FASTER, choose
from mesh.optimize.search import fewest_in_float


@given(count=some.integers(0, 200), needed=some.integers(1, 220))
def test_the_fewest_that_pass_are_found_in_few_attempts(count: int, needed: int) -> None:
    order = [f"operator {index}" for index in range(count)]
    attempts = []

    def attempt(kept: frozenset[str]) -> int | None:
        attempts.append(len(kept))
        assert kept == frozenset(order[: len(kept)])
        return len(kept) if len(kept) >= needed else None

    assert fewest_in_float(order, attempt) == (needed if needed <= count - 1 else None)
    assert len(attempts) <= 1 + max(count, 1).bit_length()
    assert not {0, count} & set(attempts) or count == 0


@given(passing=some.sets(some.integers(1, 30)))
def test_what_is_returned_has_passed_whatever_the_gate_does(passing: set[int]) -> None:
    order = [str(index) for index in range(31)]
    found = fewest_in_float(order, lambda kept: len(kept) if len(kept) in passing else None)
    assert found in passing if 30 in passing else found is None


@pytest.mark.parametrize(
    ("measured", "chosen", "said"),
    [
        ({}, "float", "no other"),
        ({"int8": (0.7, 10)}, "float", "int8 is slower here"),
        ({"int8": (1.01, 10)}, "float", "no faster"),
        ({"int8": (1.5, 10), "int8-safe": (2.0, 20)}, "int8-safe", "the fastest here: 2.00"),
        ({"int8": (2.0, 30), "int8-safe": (1.99, 20)}, "int8-safe", "smallest of the fastest"),
        ({"int8": (CLEARLY_FASTER, 10)}, "int8", "the fastest here"),
    ],
)
def test_the_fastest_is_chosen_and_float_where_nothing_is_faster(
    measured: dict[str, tuple[float, int]], chosen: str, said: str
) -> None:
    name, why = choose(measured)
    assert name == chosen
    assert said in why
