"""Plans as JSON documents: what `mesh plan --json` prints and what `--plan FILE` reads.

Written documents are complete. Read ones may be shortened by hand to `model_sha256` and, per stage,
`devices`, `start` and `end`: what follows from the model is then worked out, and figures are 0 until
`mesh.planning.predict.with_costs` fills them in. Everything that is there must be of its type.
`names`, how people call the devices, is for people only. Reading does not judge the plan:
`mesh.planning.validate` does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from mesh.core.graph import Graph
from mesh.core.ids import NODE_ID_PATTERN, SHA256_PATTERN, NodeId, Sha256
from mesh.core.plan import (
    CODECS,
    DEFAULT_ANSWER_CHANGE,
    FLOAT,
    RAW,
    Alternative,
    Explanation,
    Limits,
    LinkBreakdown,
    Objective,
    Plan,
    Prediction,
    Segment,
    Stage,
)
from mesh.core.segments import segment_between
from mesh.errors import UsageError
from mesh.planning.predict import MAX_WINDOW, MIN_WINDOW
from mesh.planning.space import MAX_REPLICAS

MAX_STAGES = 1000
"""More than any fleet has devices; bounds what a hostile file makes us build."""

_PLAN_KEYS = (
    "model_sha256",
    "variant",
    "objective",
    "forced",
    "stages",
    "predicted",
    "bound",
    "certificate",
    "alternatives",
    "window",
    "limits",
    "explanation",
    "names",
)
_LIMIT_KEYS = ("only", "excluded", "head", "replicas", "codecs", "answer_change")
_STAGE_KEYS = (
    "devices",
    "variant",
    "start",
    "end",
    "consumes",
    "produces",
    "relays",
    "weight_bytes",
    "flops",
    "sha256",
    "compute_ms",
    "measured",
    "codec",
)
_PREDICTION_KEYS = ("throughput_per_s", "latency_ms")
_ALTERNATIVE_KEYS = ("name", *_PREDICTION_KEYS, "reason")

Document = dict[str, Any]


def plan_to_json(plan: Plan) -> Document:
    """The document of `plan`: dictionaries, lists, strings and finite numbers only."""
    return {
        "model_sha256": str(plan.model_sha256),
        "variant": plan.variant,
        "objective": plan.objective.value,
        "forced": plan.forced,
        "stages": [_stage_to_json(stage) for stage in plan.stages],
        "predicted": _prediction_to_json(plan.predicted),
        "bound": {"throughput_per_s": plan.bound_throughput_per_s},
        "certificate": plan.certificate,
        "alternatives": [_alternative_to_json(alternative) for alternative in plan.alternatives],
        "window": plan.window,
        "limits": {
            "only": list(plan.limits.only),
            "excluded": list(plan.limits.excluded),
            "head": plan.limits.head,
            "replicas": plan.limits.replicas,
            "codecs": list(plan.limits.codecs),
            "answer_change": plan.limits.answer_change,
        },
        **({"explanation": _explanation_to_json(plan.explanation)} if plan.explanation is not None else {}),
    }


def plan_from_json(document: object, graph: Graph) -> Plan:
    """The plan in `document` for the model of `graph`.

    Raises `UsageError` that names the field for unknown keys, wrong types, numbers that are not finite
    or negative, positions that are no legal cuts, and a plan for another model.
    """
    reader = _Reader(document, "plan", _PLAN_KEYS)
    digest = reader.digest("model_sha256")
    if digest != graph.model_sha256:
        raise UsageError(
            f"model_sha256: the plan is for model {digest[:12]}, this model is {graph.model_sha256[:12]}",
            hint="make a plan for this model with mesh plan",
        )
    stages = reader.items("stages")
    if not 1 <= len(stages) <= MAX_STAGES:
        raise UsageError(f"plan.stages has {len(stages)} entries; it must have 1 to {MAX_STAGES}")
    objective = reader.text("objective", Objective.THROUGHPUT.value)
    if objective not in {known.value for known in Objective}:
        raise UsageError(f"plan.objective is {objective[:40]!r}; it must be one of {[o.value for o in Objective]}")
    predicted = _prediction_from_json(_Reader(reader.get("predicted", {}), "plan.predicted", _PREDICTION_KEYS))
    bound = _Reader(reader.get("bound", {}), "plan.bound", ("throughput_per_s",))
    window = reader.whole("window", MIN_WINDOW * min(len(stages), MAX_WINDOW // MIN_WINDOW))
    return Plan(
        model_sha256=digest,
        objective=Objective(objective),
        forced=reader.truth("forced", True),
        stages=tuple(_stage_from_json(stage, f"plan.stages[{i}]", graph) for i, stage in enumerate(stages)),
        predicted=predicted,
        bound_throughput_per_s=bound.number("throughput_per_s", predicted.throughput_per_s),
        certificate=reader.text("certificate", "from a plan file"),
        alternatives=tuple(
            _alternative_from_json(item, f"plan.alternatives[{i}]")
            for i, item in enumerate(reader.items("alternatives", ()))
        ),
        window=window,
        limits=_limits_from_json(_Reader(reader.get("limits", {}), "plan.limits", _LIMIT_KEYS)),
        variant=reader.text("variant", FLOAT),
    )


class _Reader:
    """One JSON object with known keys, read field by field; every refusal names the field."""

    def __init__(self, value: object, path: str, keys: Collection[str]) -> None:
        if not isinstance(value, Mapping):
            raise UsageError(f"{path} must be a JSON object")
        for key in value:
            if key not in keys:
                raise UsageError(f"{path}.{str(key)[:80]} is not a known key", hint=f"known: {', '.join(keys)}")
        self.value: Mapping[str, object] = value
        self.path = path

    def get(self, key: str, default: object = None) -> object:
        if key not in self.value:
            if default is None:
                raise UsageError(f"{self.path}.{key} is missing")
            return default
        return self.value[key]

    def _wrong(self, key: str, wanted: str) -> UsageError:
        return UsageError(f"{self.path}.{key} is {str(self.value.get(key))[:80]}; it must be {wanted}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def digest(self, key: str) -> Sha256:
        value = self.text(key)
        if not SHA256_PATTERN.fullmatch(value):
            raise self._wrong(key, "a SHA-256 in lower-case hex")
        return Sha256(value)

    def truth(self, key: str, default: bool | None = None) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(key, "a whole number of 0 or more")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(key, "a number")
        if not math.isfinite(value) or value < 0:
            raise self._wrong(key, "a finite number of 0 or more")
        return float(value)

    def items(self, key: str, default: Collection[object] | None = None) -> list[object]:
        value = self.get(key, default)
        if not isinstance(value, list | tuple):
            raise self._wrong(key, "a list")
        return list(value)

    def texts(self, key: str, default: Collection[str] | None = None) -> tuple[str, ...]:
        values = self.items(key, default)
        texts = tuple(value for value in values if isinstance(value, str))
        if len(texts) != len(values):
            raise self._wrong(key, "a list of strings")
        return texts

    def node_ids(self, key: str, default: Collection[str] | None = None) -> tuple[NodeId, ...]:
        return tuple(self.node_id(key, text) for text in self.texts(key, default))

    def node_id(self, key: str, text: str) -> NodeId:
        if not NODE_ID_PATTERN.fullmatch(text):
            raise UsageError(f"{self.path}.{key}: {text[:80]!r} is not a node id (32 lower-case hex digits)")
        return NodeId(text)


def _stage_to_json(stage: Stage) -> Document:
    segment = stage.segment
    return {
        "devices": [str(device) for device in stage.devices],
        "variant": stage.variant,
        "start": segment.start,
        "end": segment.end,
        "consumes": list(segment.consumes),
        "produces": list(segment.produces),
        "relays": list(segment.relays),
        "weight_bytes": segment.weight_bytes,
        "flops": segment.flops,
        "sha256": segment.sha256,
        "compute_ms": stage.compute_seconds * 1e3,
        "measured": stage.measured,
        "codec": stage.codec,
    }


def _stage_from_json(document: object, path: str, graph: Graph) -> Stage:
    reader = _Reader(document, path, _STAGE_KEYS)
    try:
        derived = segment_between(graph, reader.whole("start"), reader.whole("end"))
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None
    digest = None if reader.value.get("sha256") is None else reader.digest("sha256")
    segment = Segment(
        start=derived.start,
        end=derived.end,
        consumes=reader.texts("consumes", derived.consumes),
        produces=reader.texts("produces", derived.produces),
        relays=reader.texts("relays", derived.relays),
        weight_bytes=reader.whole("weight_bytes", derived.weight_bytes),
        flops=reader.whole("flops", derived.flops),
        sha256=digest,
    )
    devices = reader.node_ids("devices")
    if not devices:
        raise UsageError(f"{path}.devices is empty")
    codec = reader.text("codec", RAW)
    if codec not in CODECS:
        raise UsageError(f"{path}.codec is {codec[:40]!r}, which no node speaks", hint=f"known: {', '.join(CODECS)}")
    return Stage(
        segment=segment,
        devices=devices,
        compute_seconds=reader.number("compute_ms", 0.0) / 1e3,
        measured=reader.truth("measured", False),
        variant=reader.text("variant", FLOAT),
        codec=codec,
    )


def _limits_from_json(reader: _Reader) -> Limits:
    replicas = reader.whole("replicas", 1)
    if not 1 <= replicas <= MAX_REPLICAS:
        raise UsageError(f"{reader.path}.replicas is {replicas}; it must be 1 to {MAX_REPLICAS}")
    head = reader.value.get("head")
    codecs = reader.texts("codecs", ())
    for codec in codecs:
        if codec not in CODECS:
            known = ", ".join(CODECS)
            raise UsageError(f"{reader.path}.codecs: {codec[:40]!r} is not spoken", hint=f"known: {known}")
    change = reader.number("answer_change", DEFAULT_ANSWER_CHANGE)
    return Limits(
        only=reader.node_ids("only", ()),
        excluded=reader.node_ids("excluded", ()),
        head=None if head is None else reader.node_id("head", reader.text("head")),
        replicas=replicas,
        codecs=codecs,
        answer_change=change,
    )


def _prediction_to_json(prediction: Prediction) -> Document:
    return {"throughput_per_s": prediction.throughput_per_s, "latency_ms": prediction.latency_s * 1e3}


def _prediction_from_json(reader: _Reader) -> Prediction:
    return Prediction(reader.number("throughput_per_s", 0.0), reader.number("latency_ms", 0.0) / 1e3)


def _alternative_to_json(alternative: Alternative) -> Document:
    known = alternative.prediction
    figures = _prediction_to_json(known) if known else {"throughput_per_s": None, "latency_ms": None}
    return {"name": alternative.name, **figures, "reason": alternative.reason}


def _explanation_to_json(explanation: Explanation) -> Document:
    """For people and scripts; not read back, because it is about figures that a plan file need not have."""
    bottleneck = explanation.bottleneck
    return {
        "bottleneck": {
            "stage": bottleneck.stage,
            "is_link": bottleneck.is_link,
            "period_ms": bottleneck.period_seconds * 1e3,
        },
        "stages": [
            {
                "handling_ms": stage.handling_seconds * 1e3,
                "period_ms": stage.period_seconds * 1e3,
                "bytes_in": stage.bytes_in,
                "bytes_out": stage.bytes_out,
                "memory_bytes": stage.memory_bytes,
                "memory_available_bytes": stage.memory_available_bytes,
                "memory_measured": stage.memory_measured,
                "link": _link_to_json(stage.link) if stage.link is not None else None,
            }
            for stage in explanation.stages
        ],
        "improvements": [_alternative_to_json(improvement) for improvement in explanation.improvements],
    }


def _link_to_json(link: LinkBreakdown) -> Document:
    return {
        "bytes_per_second": link.bytes_per_second,
        "latency_ms": link.latency_seconds * 1e3,
        "transfer_ms": link.transfer_seconds * 1e3,
        "period_ms": link.period_seconds * 1e3,
        "measured": link.measured,
    }


def _alternative_from_json(document: object, path: str) -> Alternative:
    reader = _Reader(document, path, _ALTERNATIVE_KEYS)
    infeasible = reader.value.get("throughput_per_s") is None and reader.value.get("latency_ms") is None
    return Alternative(
        name=reader.text("name"),
        prediction=None if infeasible else _prediction_from_json(reader),
        reason=reader.text("reason"),
    )
