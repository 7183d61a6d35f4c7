"""The words of a plan name its stages, its bound and every alternative."""

from __future__ import annotations

from mesh.core.plan import Objective, Plan
from mesh.planning.exact import plan
from mesh.planning.explain import explain
from tests.planning.instances import random_problem


def test_everything_is_named() -> None:
    for seed in range(30):
        problem = random_problem(seed, Objective.THROUGHPUT)
        answer = plan(problem)
        if not isinstance(answer, Plan):
            continue
        lines = explain(answer, lambda device: f"board-{int(device, 16)}").splitlines()
        assert lines[0].startswith(f"{len(answer.stages)} stage")
        assert ("forced" in lines[0]) == answer.forced
        for index, stage in enumerate(answer.stages):
            assert f"board-{int(stage.devices[0], 16)}" in lines[1 + index]
            assert ("(measured)" in lines[1 + index]) == stage.measured
        assert answer.certificate in lines[1 + len(answer.stages)]
        for alternative in answer.alternatives:
            assert any(alternative.name in line and alternative.reason in line for line in lines)
