"""What a segment takes in, gives out and passes on, on a graph with a skip connection."""

from __future__ import annotations

import pytest

from mesh.core.graph import Cut, Graph, OperatorGroup
from mesh.core.ids import Sha256
from mesh.core.segments import segment_between
from mesh.errors import UsageError


def skip_graph() -> Graph:
    """x -> g0 -> a -> g1 -> b -> g2 -> c; g2 reads a as well; outputs are c and a; g1 and g2 share a weight."""
    reads = [("x",), ("a",), ("b", "a")]
    makes = [("a",), ("b",), ("c",)]
    weights = [("w0",), ("shared",), ("shared", "w2")]
    groups = tuple(
        OperatorGroup(i, f"g{i}", ("Conv",), (i,), 10 * (i + 1), weights[i], 4, reads[i], makes[i]) for i in range(3)
    )
    cuts = (Cut(0, ("x",), 1), Cut(1, ("a",), 1), Cut(2, ("a", "b"), 2), Cut(3, ("c", "a"), 2))
    return Graph(Sha256("0" * 64), 0, (), (), groups, cuts, {}, {"w0": 1, "shared": 10, "w2": 100})


def test_whole_model() -> None:
    segment = segment_between(skip_graph(), 0, 3)
    assert (segment.consumes, segment.produces, segment.relays) == (("x",), ("c", "a"), ())
    assert (segment.weight_bytes, segment.flops, segment.sha256) == (111, 60, None)


def test_consumed_and_relayed_at_once() -> None:
    segment = segment_between(skip_graph(), 1, 2)
    assert (segment.consumes, segment.produces, segment.relays) == (("a",), ("b",), ("a",))


def test_order_is_that_of_the_cut() -> None:
    segment = segment_between(skip_graph(), 2, 3)
    assert (segment.consumes, segment.produces, segment.relays) == (("a", "b"), ("c",), ("a",))
    assert segment.weight_bytes == 110


def test_a_relay_that_nobody_inside_reads() -> None:
    graph = skip_graph()
    groups = (*graph.groups[:1], OperatorGroup(1, "g1", ("Relu",), (1,), 0, (), 4, ("k",), ("b",)), graph.groups[2])
    cuts = (graph.cuts[0], Cut(1, ("a", "k"), 2), *graph.cuts[2:])
    segment = segment_between(Graph(graph.model_sha256, 0, (), (), groups, cuts, {}, graph.weight_bytes), 1, 2)
    assert (segment.consumes, segment.produces, segment.relays) == (("k",), ("b",), ("a",))


@pytest.mark.parametrize(
    ("start", "end", "telling"), [(0, 4, "end 4"), (-1, 3, "start -1"), (2, 2, "no operator"), (3, 1, "no operator")]
)
def test_what_is_no_segment_is_refused(start: int, end: int, telling: str) -> None:
    with pytest.raises(UsageError, match=telling):
        segment_between(skip_graph(), start, end)
