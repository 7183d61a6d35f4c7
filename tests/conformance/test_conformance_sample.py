"""A fixed sample of the onnx package's backend cases through real daemons; `scripts/conformance` runs all of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.backend.test.case.test_case import TestCase

from tests.conformance.conformance import check, check_all
from tests.conformance.loopback_backend import LoopbackMesh
from tests.conformance.onnx_cases import KINDS, Case, load_cases, sample

SAMPLE = 60
MUST_PASS = 30
MUST_PASS_CUT = 8
"""Fewer would mean that cases are passed over, not that they pass. The oldest ONNX Runtime that is allowed has 34 and
10 with the newest cases, most others above 40."""


def make_case(expected: float, kind: str = "tensor") -> Case:
    """y = -x and its exponential, for x = 0, with a made-up expectation; or with a sequence for an input."""
    node = helper.make_node("Neg", ["x"], ["h"])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    if kind == "sequence":
        node = helper.make_node("SequenceAt", ["x", "i"], ["h"])
        value = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [node, helper.make_node("Exp", ["h"], ["y"])],
        "case",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [helper.make_tensor("i", TensorProto.INT64, [], [0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.zeros(1, np.float32)
    sets = [([[x] if kind == "sequence" else x], [np.array([expected], np.float32)])]
    return Case("made/test", 1e-3, 1e-7, TestCase("test", "test", None, None, model, sets, "node", 1e-3, 1e-7))


def test_all_kinds_are_there_and_a_sample_is_always_the_same() -> None:
    cases = load_cases()
    assert set(KINDS) == {case.name.partition("/")[0] for case in cases}
    assert len({case.name for case in cases}) == len(cases) > 1500
    assert sample(cases, 5) == sample(list(reversed(cases)), 5)


@pytest.mark.timeout(180)
def test_sample_passes_whole_and_cut() -> None:
    with LoopbackMesh() as mesh:
        tally = check_all(mesh, sample(load_cases(), SAMPLE), lambda outcome: None)
        assert not tally.failures, "\n".join(f"{each.case.name}: {each.reason}" for each in tally.failures)
        counts = Counter(outcome.verdict for outcome in tally.outcomes)
        assert counts["passed"] >= MUST_PASS and tally.cut >= MUST_PASS_CUT, str(tally)

        passed = check(mesh, make_case(1.0))
        assert (passed.verdict, passed.cuts) == ("passed", 1), passed
        refused = check(mesh, make_case(1.0, "sequence"))
        assert refused.verdict == "refused" and "'x'" in refused.reason, refused
        # What ONNX Runtime itself gets "wrong" is not held against the mesh.
        assert check(mesh, make_case(2.0)).verdict == "reference fails"


def test_differences_are_seen() -> None:
    case = make_case(1.0)
    ones = np.ones((2, 2), np.float32)
    assert not case.compare([ones], [ones + np.float32(1e-4)])
    assert case.compare([ones], [ones + np.float32(1e-2)])
    assert case.compare([ones], [ones.astype(np.float64)])
    assert case.compare([ones], [ones.reshape(4)])
    assert case.compare([ones], [])
