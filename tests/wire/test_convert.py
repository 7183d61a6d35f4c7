"""Core values through protobuf and back, and what the door refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.fleet import Capabilities, CodecSpeed, Handling, Link, NodeState, Provider
from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.plan import Alternative, Deployment, Fence, Objective, Plan, Prediction, Segment, Stage
from mesh.core.report import DeploymentReport, Happening, MeasuredModel, NodeView, StageReport
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import BY_CODE, MeshError, ProtocolViolation, UsageError, from_code
from mesh.v1 import coordinator_pb2, node_pb2, plan_pb2, tensor_pb2
from mesh.wire import convert
from mesh.wire.convert_fleet import MAX_HAPPENINGS, MAX_PROVIDERS
from mesh.wire.convert_plan import MAX_DEPLOYMENT_BYTES, MAX_REPLICAS, MAX_STAGES
from mesh.wire.frame_format import MAX_ERROR_BYTES

FEW = settings(max_examples=40, deadline=None)

digests = st.text("0123456789abcdef", min_size=64, max_size=64).map(Sha256)
node_ids = st.text("0123456789abcdef", min_size=32, max_size=32).map(NodeId)
labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
names = labels.map(DeploymentName)
text = st.text(st.characters(codec="utf-8"), max_size=30)
tensor_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
positive = st.floats(0, 1e300)
uint64 = st.integers(0, (1 << 64) - 1)
dimensions = st.one_of(st.integers(0, 1 << 40), st.sampled_from(["batch", "?", "unk__12"]))
specs = st.builds(
    TensorSpec,
    name=tensor_names,
    dtype=st.sampled_from(DType),
    shape=st.none() | st.lists(dimensions, max_size=4).map(tuple),
)
spec_lists = st.lists(specs, max_size=2).map(tuple)
name_lists = st.lists(tensor_names, max_size=2).map(tuple)
segments = st.builds(
    lambda start, length, **rest: Segment(start=start, end=start + length, **rest),
    start=st.integers(0, 1000),
    length=st.integers(0, 1000),
    consumes=name_lists,
    produces=name_lists,
    relays=name_lists,
    weight_bytes=uint64,
    flops=uint64,
    sha256=st.none() | digests,
)
stages = st.builds(
    Stage,
    segment=segments,
    devices=st.lists(node_ids, min_size=1, max_size=3, unique=True).map(tuple),
    compute_seconds=positive,
    measured=st.booleans(),
    variant=labels,
)
predictions = st.builds(Prediction, positive, positive)
plans = st.builds(
    Plan,
    model_sha256=digests,
    objective=st.sampled_from(Objective),
    forced=st.booleans(),
    stages=st.lists(stages, min_size=1, max_size=3).map(tuple),
    predicted=predictions,
    bound_throughput_per_s=positive | st.just(math.inf),
    certificate=text,
    alternatives=st.lists(st.builds(Alternative, text, st.none() | predictions, text), max_size=2).map(tuple),
    window=st.integers(1, 4096),
)
addresses = st.sampled_from(["127.0.0.1:50071", "mesh-01234567.local.:1", "[::1]:65535", "[fe80::1%eth0]:50071", "a:1"])


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    plan = draw(plans)
    return Deployment(
        name=draw(names),
        fence=Fence(draw(uint64), draw(uint64)),
        plan=plan,
        inputs=draw(spec_lists),
        outputs=draw(spec_lists),
        boundaries=tuple(draw(spec_lists) for _ in range(len(plan.stages) + 1)),
        addresses={device: draw(addresses) for device in plan.devices},
    )


capabilities = st.builds(
    Capabilities,
    node_id=node_ids,
    name=labels,
    arch=st.sampled_from(["x86_64", "aarch64", "armv7l"]),
    cores=positive,
    memory_bytes=uint64,
    memory_available_bytes=uint64,
    disk_available_bytes=uint64,
    providers=st.lists(st.builds(Provider, labels, st.booleans(), text), max_size=2).map(tuple),
    runtime_version=st.sampled_from(["", "1.20.0"]),
    gflops=positive,
    memory_gb_per_s=positive,
    state=st.sampled_from([NodeState.MEASURING, NodeState.READY, NodeState.DRAINING]),
    software_version=st.just("0.1.0"),
    hardware=st.sampled_from(["", "Raspberry Pi 4 Model B Rev 1.4"]),
    mode=st.sampled_from(["", "4x1"]),
    codecs=st.lists(st.builds(CodecSpeed, labels, positive, positive), max_size=2).map(tuple),
)
uint32 = st.integers(0, (1 << 32) - 1)
stage_reports = st.builds(StageReport, uint32, uint64, positive, positive, uint64, uint64, peak_bytes=uint64)
sent = st.dictionaries(st.sampled_from(["", "a" * 32, "b" * 32]), uint64)
stage_figures = (uint32, uint64, positive, positive, uint64, uint64)
stage_reports = st.builds(StageReport, *stage_figures, sent_bytes=sent, peak_bytes=uint64)
reports = st.builds(
    DeploymentReport,
    deployment=deployments(),
    state=st.sampled_from(["preparing", "loading", "ready", "active", "draining", "gone", "failed"]),
    reason=text,
    stages=st.lists(stage_reports, max_size=2).map(tuple),
    happenings=st.lists(st.builds(Happening, positive, text), max_size=2).map(tuple),
)


def through_bytes(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@FEW
@given(specs)
def test_tensor_specs_return(spec: TensorSpec) -> None:
    assert convert.tensor_spec_from_proto(through_bytes(convert.tensor_spec_to_proto(spec))) == spec


@FEW
@given(plans)
def test_plans_return(plan: Plan) -> None:
    assert convert.plan_from_proto(through_bytes(convert.plan_to_proto(plan))) == plan


@FEW
@given(deployments())
def test_deployments_return(deployment: Deployment) -> None:
    assert convert.deployment_from_proto(through_bytes(convert.deployment_to_proto(deployment))) == deployment
    data = convert.deployment_to_bytes(deployment)
    assert convert.deployment_from_bytes(data) == deployment
    backwards = replace(deployment, addresses=dict(reversed(list(deployment.addresses.items()))))
    assert convert.deployment_to_bytes(backwards) == data


@FEW
@given(capabilities, addresses)
def test_capabilities_and_views_return(found: Capabilities, address: str) -> None:
    assert convert.capabilities_from_proto(through_bytes(convert.capabilities_to_proto(found))) == found
    lost = replace(found, state=NodeState.LOST)
    for view in (NodeView(found, address), NodeView(found, address, True), NodeView(lost, address, True)):
        assert convert.node_view_from_proto(through_bytes(convert.node_view_to_proto(view))) == view


@FEW
@given(reports)
def test_reports_return(report: DeploymentReport) -> None:
    assert convert.report_from_proto(through_bytes(convert.report_to_proto(report))) == report
    assert convert.report_from_proto(through_bytes(convert.report_to_view(report))) == report


@FEW
@given(positive, positive.filter(bool), uint32)
def test_measurements_return(first: float, second: float, count: int) -> None:
    link, measured = Link(first, second), MeasuredModel(first, count)
    costly = replace(link, sending=Handling(first, 0.0, True), receiving=Handling(second, first, True))
    for each in (link, costly):
        assert convert.link_from_proto(through_bytes(convert.link_to_proto(each))) == each
    assert convert.measured_model_from_proto(through_bytes(convert.measured_model_to_proto(measured))) == measured


@FEW
@given(st.sampled_from(sorted(BY_CODE)), text, text)
def test_errors_return(code: str, message: str, hint: str) -> None:
    error = convert.error_from_proto(through_bytes(convert.error_to_proto(from_code(code, message, hint))))
    assert (type(error), error.message, error.hint) == (BY_CODE[code], message, hint)


def test_long_error_texts_are_cut_when_sent_and_refused_when_received() -> None:
    sent = convert.error_to_proto(MeshError("x" * 10_000, hint="\ud800"))
    assert (len(sent.message), sent.hint) == (MAX_ERROR_BYTES, "?")
    with pytest.raises(ProtocolViolation, match=r"error\.message"):
        convert.error_from_proto(tensor_pb2.Error(message="x" * (MAX_ERROR_BYTES + 1)))


# --- the door -------------------------------------------------------------------------------------


def make_deployment() -> Deployment:
    spec = TensorSpec("x", DType.FLOAT32, ("n", 3))
    segment = Segment(0, 4, ("x",), ("y",), (), 10, 20, Sha256("a" * 64))
    node = NodeId("0" * 32)
    plan = Plan(
        model_sha256=Sha256("b" * 64),
        objective=Objective.THROUGHPUT,
        forced=False,
        stages=(Stage(segment, (node,), 0.1),),
        predicted=Prediction(10, 0.1),
        bound_throughput_per_s=10,
        certificate="exact",
        alternatives=(),
        window=4,
    )
    return Deployment(
        DeploymentName("demo"), Fence(1, 2), plan, (spec,), (spec,), ((spec,), (spec,)), {node: "10.0.0.1:50071"}
    )


Spoil = Callable[[plan_pb2.Deployment], object]


def set_on(path: str, value: object) -> Spoil:
    """Set the field at `path` ("plan.stages.0.segment.start")."""

    def spoil(proto: Any) -> None:
        *way, last = path.split(".")
        for step in way:
            proto = proto[int(step)] if step.isdigit() else getattr(proto, step)
        setattr(proto, last, value)

    return spoil


SPOILED: list[tuple[Spoil, str]] = [
    (set_on("name", "Not A Name"), r"deployment\.name"),
    (set_on("name", ""), r"deployment\.name"),
    (set_on("plan.model_sha256", "b" * 63), r"plan\.model_sha256"),
    (set_on("plan.objective", 0), "objective: unknown value 0"),
    (set_on("plan.objective", 99), "objective: unknown value 99"),
    (set_on("plan.window", 0), r"plan\.window"),
    (set_on("plan.window", 1 << 31), r"plan\.window"),
    (set_on("plan.bound_throughput_per_s", math.nan), "bound_throughput"),
    (set_on("plan.predicted.latency_s", math.inf), r"prediction\.latency_s"),
    (set_on("plan.predicted.throughput_per_s", -1.0), r"prediction\.throughput_per_s"),
    (set_on("plan.certificate", "x" * 5000), r"plan\.certificate"),
    (set_on("plan.stages.0.compute_seconds", math.nan), r"plan\.stages\[0\]: compute_seconds"),
    (set_on("plan.stages.0.variant", "a\nb"), r"plan\.stages\[0\]: variant"),
    (set_on("plan.stages.0.segment.start", 5), "before its start"),
    (set_on("plan.stages.0.segment.sha256", "../../etc/passwd"), r"segment\.sha256"),
    (lambda p: p.plan.stages[0].segment.consumes.append(""), r"segment\.consumes\[1\]: a tensor has no name"),
    (lambda p: p.plan.stages[0].segment.relays.append("x" * 5000), r"segment\.relays\[0\]: tensor name"),
    (lambda p: p.plan.stages[0].segment.relays.extend(["x"] * 1025), r"segment\.relays: 1025 items"),
    (lambda p: p.plan.stages[0].ClearField("devices"), r"plan\.stages\[0\]: devices"),
    (lambda p: p.plan.stages[0].devices.append("0" * 32), "each once"),
    (lambda p: p.plan.stages[0].devices.append("pi-1"), r"plan\.stages\[0\]: devices\[1\]: node id"),
    (lambda p: p.plan.stages[0].devices.extend(["0" * 32] * MAX_REPLICAS), "devices: 257 items"),
    (lambda p: p.plan.ClearField("stages"), r"plan\.stages"),
    (lambda p: p.plan.stages.extend([plan_pb2.Stage()] * MAX_STAGES), r"plan\.stages: 257 items"),
    (lambda p: p.plan.alternatives.extend([plan_pb2.Alternative()] * 1025), r"plan\.alternatives: 1025 items"),
    (lambda p: p.boundaries.add(), r"deployment\.boundaries: 3 for 1 stages"),
    (lambda p: p.ClearField("boundaries"), r"deployment\.boundaries: 0"),
    (lambda p: p.inputs.extend([tensor_pb2.TensorSpec()] * 1025), r"deployment\.inputs: 1026 items"),
    (lambda p: p.ClearField("addresses"), r"deployment\.addresses: none for node 0000"),
    (lambda p: p.addresses.update({"me": "a:1"}), r"deployment\.addresses"),
    (set_on("inputs.0.name", ""), r"deployment\.inputs\[0\]: a tensor has no name"),
    (set_on("inputs.0.data_type", 0), "unknown element type 0"),
    (set_on("inputs.0.data_type", 99), "unknown element type 99"),
    (set_on("inputs.0.has_rank", False), "without rank"),
    (set_on("inputs.0.dimensions.0.size", -1), r"dimensions\[0\]: size: -1"),
    (set_on("inputs.0.dimensions.0.size", 1 << 62), r"dimensions\[0\]: size"),
    (set_on("inputs.0.dimensions.0.symbol", ""), r"dimensions\[0\]: neither"),
    (set_on("inputs.0.dimensions.0.symbol", "\x1b[31m"), r"dimensions\[0\]: symbol"),
    (lambda p: p.outputs[0].dimensions.extend([tensor_pb2.Dimension(size=1)] * 32), "dimensions: 34 items"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILED)
def test_spoiled_deployments_are_refused_by_field(spoil: Spoil, words: str) -> None:
    proto = convert.deployment_to_proto(make_deployment())
    convert.deployment_from_proto(proto)
    spoil(proto)
    with pytest.raises((ProtocolViolation, UsageError), match=words):
        convert.deployment_from_proto(proto)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        ":50071",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:1x",
        "unix:/run/secret:1",
        "unix-abstract:x",
        "dns:///host:1",
        "ho st:1",
        "host:1\n",
        "[::1:1",
        "::1:1",
        "a@b:1",
        "-a:1",
        "x" * 300 + ":1",
    ],
)
def test_addresses_are_host_and_port_only(address: str) -> None:
    proto = convert.deployment_to_proto(make_deployment())
    proto.addresses["0" * 32] = address
    with pytest.raises(ProtocolViolation, match="addresses"):
        convert.deployment_from_proto(proto)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05a", b"\x0a\x01\xff", b"", bytes(100)])
def test_bytes_that_are_no_deployment_are_refused(data: bytes) -> None:
    with pytest.raises((ProtocolViolation, UsageError)):
        convert.deployment_from_bytes(data)


def test_deployments_above_the_limit_are_not_parsed() -> None:
    with pytest.raises(ProtocolViolation, match="limit"):
        convert.deployment_from_bytes(b"\x0a" * (MAX_DEPLOYMENT_BYTES + 1))


@FEW
@given(deployments(), st.data())
def test_mutated_deployments_raise_only_mesh_errors(deployment: Deployment, data: st.DataObject) -> None:
    mutated = bytearray(convert.deployment_to_bytes(deployment))
    for _ in range(3):
        place = data.draw(st.integers(0, len(mutated) - 1))
        mutated[place] = data.draw(st.integers(0, 255))
    try:
        answer = convert.deployment_from_bytes(bytes(mutated))
    except MeshError:
        return
    assert convert.deployment_from_bytes(convert.deployment_to_bytes(answer)) == answer


def make_capabilities() -> node_pb2.Capabilities:
    return node_pb2.Capabilities(node_id="0" * 32, name="pi", arch="aarch64", cores=4, state=node_pb2.NODE_STATE_READY)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_id", "0"),
        ("name", "Living Room"),
        ("arch", "x" * 300),
        ("arch", "a\x00"),
        ("cores", math.nan),
        ("cores", -1.0),
        ("gflops", math.inf),
        ("memory_gb_per_s", -0.1),
        ("state", 0),
        ("state", 77),
    ],
)
def test_spoiled_capabilities_are_refused_by_field(field: str, value: object) -> None:
    proto = make_capabilities()
    convert.capabilities_from_proto(proto)
    setattr(proto, field, value)
    with pytest.raises((ProtocolViolation, UsageError), match=field.replace("state", "node state")):
        convert.capabilities_from_proto(proto)


def test_provider_and_event_counts_are_bounded() -> None:
    proto = make_capabilities()
    proto.providers.extend([node_pb2.Provider()] * (MAX_PROVIDERS + 1))
    with pytest.raises(ProtocolViolation, match=r"capabilities\.providers: 65 items"):
        convert.capabilities_from_proto(proto)
    report = DeploymentReport(make_deployment(), "active", "", (), tuple(Happening(i, "x") for i in range(2000)))
    told = convert.report_from_proto(convert.report_to_proto(report))
    assert told.happenings == report.happenings[-MAX_HAPPENINGS:]


@pytest.mark.parametrize("state", [0, 8, -1])
def test_unknown_deployment_states_are_refused(state: int) -> None:
    proto = convert.report_to_proto(DeploymentReport(make_deployment(), "active", "", (), ()))
    proto.state = state  # type: ignore[assignment]
    with pytest.raises(ProtocolViolation, match="deployment state"):
        convert.report_from_proto(proto)


def test_only_lost_nodes_may_be_without_a_state() -> None:
    proto = make_capabilities()
    proto.state = node_pb2.NODE_STATE_UNSPECIFIED
    view = coordinator_pb2.NodeView(capabilities=proto, address="a:1", lost=True)
    assert convert.node_view_from_proto(view).capabilities.state is NodeState.LOST
    view.lost = False
    with pytest.raises(ProtocolViolation, match="node state"):
        convert.node_view_from_proto(view)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_impossible_links_are_refused(rate: float) -> None:
    with pytest.raises(ProtocolViolation, match=r"link\.bytes_per_second"):
        convert.link_from_proto(node_pb2.MeasureLinkResponse(latency_seconds=0.1, bytes_per_second=rate))
