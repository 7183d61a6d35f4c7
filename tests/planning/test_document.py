"""Plans as JSON: nothing is lost, hand-shortened files work, and every fault names its field."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from mesh.core.ids import Sha256
from mesh.core.plan import Limits, Objective, Plan
from mesh.errors import UsageError
from mesh.planning.document import plan_from_json, plan_to_json
from mesh.planning.exact import plan
from mesh.planning.explain import explain
from mesh.planning.predict import with_costs
from mesh.planning.validate import problems
from tests.planning.instances import random_problem


def some_plans() -> list[tuple[Plan, Any]]:
    found = []
    for seed in range(60):
        problem = random_problem(seed, list(Objective)[seed % 3])
        answer = plan(problem)
        if isinstance(answer, Plan):
            found.append((answer, problem))
    assert any(len(answer.stages) > 1 for answer, _ in found)
    assert any(alternative.prediction is None for answer, _ in found for alternative in answer.alternatives)
    return found


PLANS = some_plans()
PLAN, PROBLEM = max(PLANS, key=lambda found: (len(found[0].stages), len(found[0].alternatives)))


def rounded(value: Any) -> Any:
    """`value` with floats to 12 digits: milliseconds and back may cost the last bit."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, tuple | list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value


def test_round_trip_keeps_everything() -> None:
    for answer, problem in PLANS:
        document = json.loads(json.dumps(plan_to_json(answer), allow_nan=False))
        again = plan_from_json(document, problem.graph)
        assert rounded(dataclasses.asdict(again)) == rounded(dataclasses.asdict(answer))


def test_limits_codec_and_variant_survive() -> None:
    limits = Limits((PROBLEM.devices[0],), (PROBLEM.devices[-1],), PROBLEM.devices[0], 3)
    again = plan_from_json(plan_to_json(dataclasses.replace(PLAN, limits=limits, variant="int8")), PROBLEM.graph)
    assert (again.limits, again.stages[0].codec, again.variant) == (limits, "raw", "int8")


def test_an_explanation_is_written_and_not_read() -> None:
    document = plan_to_json(dataclasses.replace(PLAN, explanation=explain(PROBLEM, PLAN)))
    explained = json.loads(json.dumps(document, allow_nan=False))["explanation"]
    assert len(explained["stages"]) == len(PLAN.stages)
    assert explained["stages"][-1]["link"] is None
    assert set(explained["stages"][0]["link"]) >= {"bytes_per_second", "latency_ms", "transfer_ms"}
    assert explained["bottleneck"]["stage"] < len(PLAN.stages)
    assert plan_from_json(document, PROBLEM.graph).explanation is None


def test_digest_of_a_segment_survives() -> None:
    stage = PLAN.stages[0]
    digest = Sha256("ab" * 32)
    named = dataclasses.replace(stage, segment=dataclasses.replace(stage.segment, sha256=digest))
    document = plan_to_json(dataclasses.replace(PLAN, stages=(named, *PLAN.stages[1:])))
    assert plan_from_json(document, PROBLEM.graph).stages[0].segment.sha256 == digest


def test_what_others_script_against_is_there() -> None:
    document = plan_to_json(PLAN)
    assert {"model_sha256", "forced", "stages", "predicted", "bound", "certificate", "alternatives"} <= set(document)
    wanted = {"devices", "variant", "consumes", "produces", "weight_bytes", "compute_ms"}
    assert all(wanted <= set(stage) for stage in document["stages"])
    assert set(document["predicted"]) == {"throughput_per_s", "latency_ms"}
    assert set(document["bound"]) == {"throughput_per_s"}
    wanted = {"name", "throughput_per_s", "latency_ms", "reason"}
    assert all(set(alternative) == wanted for alternative in document["alternatives"])
    assert document["stages"][0]["compute_ms"] == PLAN.stages[0].compute_seconds * 1000


def test_a_file_shortened_by_hand_is_completed() -> None:
    full = plan_to_json(PLAN)
    short = {
        "model_sha256": full["model_sha256"],
        "stages": [{key: stage[key] for key in ("devices", "start", "end")} for stage in full["stages"]],
    }
    read = plan_from_json(short, PROBLEM.graph)
    assert read.forced
    assert [stage.segment for stage in read.stages] == [stage.segment for stage in PLAN.stages]
    assert problems(read, PROBLEM.graph, PROBLEM.devices) == ()
    priced = with_costs(read, PROBLEM.graph, PROBLEM.costs)
    assert (priced.stages, priced.predicted, priced.window) == (PLAN.stages, PLAN.predicted, PLAN.window)
    assert problems(priced, PROBLEM.graph, PROBLEM.devices) == ()


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Set what is at `path[:-1]` of a document to `path[-1]`."""

    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (put("extra", 1), r"plan\.extra is not a known key"),
        (put("stages", 0, "speed", 1), r"plan\.stages\[0\]\.speed is not a known key"),
        (put("predicted", "energy", 1), r"plan\.predicted\.energy"),
        (put("model_sha256", "00" * 32), "model_sha256: the plan is for model"),
        (put("model_sha256", "zz"), r"plan\.model_sha256"),
        (put("model_sha256", 5), r"plan\.model_sha256"),
        (drop("model_sha256"), r"plan\.model_sha256 is missing"),
        (drop("stages"), r"plan\.stages is missing"),
        (put("stages", []), r"plan\.stages has 0 entries"),
        (put("stages", {}), r"plan\.stages"),
        (put("stages", 0, "not an object"), r"plan\.stages\[0\] must be a JSON object"),
        (drop("stages", 0, "start"), r"plan\.stages\[0\]\.start is missing"),
        (put("stages", 0, "start", 0.0), r"plan\.stages\[0\]\.start"),
        (put("stages", 0, "start", True), r"plan\.stages\[0\]\.start"),
        (put("stages", 0, "end", 10**9), r"plan\.stages\[0\]: segment end"),
        (put("stages", 0, "end", -1), r"plan\.stages\[0\]\.end"),
        (put("stages", 0, "devices", []), r"plan\.stages\[0\]\.devices is empty"),
        (put("stages", 0, "devices", ["pi"]), r"plan\.stages\[0\]\.devices"),
        (put("stages", 0, "devices", [1]), r"plan\.stages\[0\]\.devices"),
        (put("stages", 0, "devices", "aa"), r"plan\.stages\[0\]\.devices"),
        (put("stages", 0, "compute_ms", float("nan")), r"plan\.stages\[0\]\.compute_ms"),
        (put("stages", 0, "compute_ms", "1"), r"plan\.stages\[0\]\.compute_ms"),
        (put("stages", 0, "weight_bytes", -1), r"plan\.stages\[0\]\.weight_bytes"),
        (put("stages", 0, "sha256", "x"), r"plan\.stages\[0\]\.sha256"),
        (put("predicted", "throughput_per_s", float("inf")), r"plan\.predicted\.throughput_per_s"),
        (put("predicted", None), r"plan\.predicted must be a JSON object"),
        (put("bound", "throughput_per_s", -1), r"plan\.bound\.throughput_per_s"),
        (put("objective", "speed"), r"plan\.objective"),
        (put("stages", 0, "codec", "zip"), r"plan\.stages\[0\]\.codec is 'zip', which no node speaks"),
        (put("stages", 0, "codec", 1), r"plan\.stages\[0\]\.codec"),
        (put("limits", "excluded", ["pi"]), r"plan\.limits\.excluded: 'pi' is not a node id"),
        (put("limits", "head", "pi"), r"plan\.limits\.head"),
        (put("limits", "replicas", 0), r"plan\.limits\.replicas is 0"),
        (put("limits", "extra", 0), r"plan\.limits\.extra is not a known key"),
        (put("forced", 1), r"plan\.forced"),
        (put("window", 1.5), r"plan\.window"),
        (put("certificate", None), r"plan\.certificate"),
        (put("alternatives", [{"name": 1}]), r"plan\.alternatives\[0\]\.name"),
        (put("alternatives", [1]), r"plan\.alternatives\[0\]"),
    ],
)
def test_faults_name_the_field(spoil: Callable[[dict[str, Any]], None], field: str) -> None:
    document = copy.deepcopy(plan_to_json(PLAN))
    spoil(document)
    with pytest.raises(UsageError, match=field):
        plan_from_json(document, PROBLEM.graph)


@pytest.mark.parametrize("document", [None, [], "plan", 3])
def test_documents_that_are_no_object(document: object) -> None:
    with pytest.raises(UsageError, match="plan must be a JSON object"):
        plan_from_json(document, PROBLEM.graph)
