"""Even splits against brute force, and their tie-breaks."""

from __future__ import annotations

import itertools
import random

import pytest

from mesh.errors import UsageError
from mesh.planning.balance import balanced_positions
from tests.planning.instances import chain_graph, make_graph, random_graph
from tests.planning.oracle import least_maximum_flops


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("max_tensors", [None, 1, 3])
def test_as_even_as_brute_force(stages: int, max_tensors: int | None) -> None:
    rng = random.Random(stages)
    for _ in range(60):
        graph = random_graph(rng, most_groups=24, most_inner_cuts=12)
        positions = balanced_positions(graph, stages, max_tensors)
        last = len(graph.groups)
        usable = [
            cut.position
            for cut in graph.cuts
            if cut.position in (0, last) or max_tensors is None or len(cut.tensors) <= max_tensors
        ]
        assert positions[0] == 0 and positions[-1] == last
        assert list(positions) == sorted(set(positions))
        assert set(positions) <= set(usable)
        assert len(positions) - 1 == min(stages, len(usable) - 1)
        largest = max(graph.segment_flops(a, b) for a, b in itertools.pairwise(positions))
        if graph.flops:
            assert largest == least_maximum_flops(graph, usable, len(positions) - 1)


def test_equal_groups_split_equally() -> None:
    assert balanced_positions(chain_graph([5] * 12), 4) == (0, 3, 6, 9, 12)


def test_ties_take_fewest_bytes() -> None:
    graph = chain_graph([10, 0, 0, 10], sizes=[1, 900, 30, 700, 1])
    assert balanced_positions(graph, 2) == (0, 2, 4)


def test_equal_bytes_take_fewest_tensors() -> None:
    # Tensors 1 and 2 (50 bytes each) cross position 2; tensor 3 (100 bytes) alone crosses position 3.
    graph = make_graph(
        [10, 0, 0, 10],
        [[0], [0], [1, 2], [3]],
        [1, 50, 50, 100, 1],
        [[], [], [], []],
        {},
        legal=[2, 3],
    )
    assert [(len(cut.tensors), cut.bytes) for cut in graph.cuts[1:3]] == [(2, 100), (1, 100)]
    assert balanced_positions(graph, 2) == (0, 3, 4)


def test_fewer_segments_where_cuts_run_out() -> None:
    graph = chain_graph([1, 1, 1])
    assert balanced_positions(graph, 9) == (0, 1, 2, 3)
    assert balanced_positions(graph, 1) == (0, 3)


def test_a_model_without_operations_is_split_by_groups() -> None:
    assert balanced_positions(chain_graph([0] * 8), 4) == (0, 2, 4, 6, 8)


def test_large_operation_counts_stay_exact() -> None:
    unit = 10**12
    assert balanced_positions(chain_graph([unit, unit, unit, unit + 1]), 2) == (0, 2, 4)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="stages is 0"):
        balanced_positions(chain_graph([1]), 0)
    with pytest.raises(UsageError, match="no operators"):
        balanced_positions(chain_graph([]), 1)
