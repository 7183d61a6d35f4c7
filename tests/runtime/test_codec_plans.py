"""Codecs from the wish to the wire: what is offered, what it does to answers, what is put in force and refused."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mesh.arrays import from_array, to_array
from mesh.core.coding import CODECS, loss_of
from mesh.core.fleet import Capabilities, CodecSpeed, Link, NodeState, Provider
from mesh.core.ids import NodeId
from mesh.core.plan import Limits, Plan, PlanOptions, Stage
from mesh.core.segments import segment_between
from mesh.discovery.memory import MemoryNetwork
from mesh.engines import make_engine
from mesh.engines.contract import LoadOptions
from mesh.errors import UsageError, VerificationFailed
from mesh.hardware.probe import ProbeResult
from mesh.model.change import largest_change
from mesh.model.read import read_model_bytes
from mesh.model.summarise import summarise
from mesh.runtime import costing
from mesh.runtime import node as node_module
from mesh.runtime.codec_gate import measure_change
from mesh.runtime.codec_offers import find_codecs
from mesh.runtime.frame_stream import FrameStream, StreamOptions
from mesh.runtime.supervise import Supervisor
from mesh.wire.channel import NodeClient
from mesh.wire.coordinator_client import CoordinatorClient
from tests.runtime.mesh_on_loopback import make_coordinator, make_node, running

SPEEDS = tuple(CodecSpeed(codec, 1e-9, 1e-9) for codec in CODECS[1:])
ANY = Limits(codecs=CODECS[1:])


def make_model() -> bytes:
    """Four layers on [64, 256]; behind each a ReLU."""
    random = np.random.default_rng(7)
    nodes, weights, previous = [], [], "x"
    for index in range(4):
        values = (random.standard_normal((256, 256)) / 11).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [previous, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [f"h{index}"]))
        previous = f"h{index}"
    nodes[-1].output[0] = "y"
    shape = [64, 256]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


MODEL = make_model()


@dataclasses.dataclass
class Pair:
    """Two nodes and a coordinator on loopback; what is measured of the links between the two is made up: 2 MB/s."""

    client: CoordinatorClient
    ids: tuple[NodeId, NodeId]


@pytest.fixture
async def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    usable = (Provider("CPUExecutionProvider", True),)
    probed = ProbeResult(runtime_version="1", providers=usable, gflops=1.0, memory_gb_per_s=1.0, codecs=SPEEDS)
    monkeypatch.setattr(node_module, "run_probe", lambda stop: probed)

    async def measure_link(*_: object) -> Link:
        return Link(1e-3, 2e6)

    monkeypatch.setattr(costing, "_measure_link", measure_link)
    network = MemoryNetwork()
    async with (
        running(make_node(network, tmp_path, "first")) as first,
        running(make_node(network, tmp_path, "second")) as second,
        running(make_coordinator(network, tmp_path)) as coordinator,
    ):
        client = CoordinatorClient(coordinator.address)
        try:
            yield Pair(client, (first.ready.identity.node_id, second.ready.identity.node_id))
        finally:
            await client.close()


def codec_of(plan: Plan) -> str:
    return plan.stages[0].codec


async def test_a_slow_link_gets_a_codec_and_answers_stay_within_what_is_allowed(pair: Pair) -> None:
    told: list[str] = []
    raw = await pair.client.plan(MODEL, PlanOptions(stages=2), told.append)
    assert codec_of(raw) == "raw", "nobody has permitted anything else"
    deployment = await pair.client.deploy(MODEL, "chain", PlanOptions(stages=2, limits=ANY), told.append)
    plan = deployment.plan
    assert codec_of(plan) == "int8+zstd"
    assert plan.limits == ANY
    assert plan.predicted.throughput_per_s > 4 * raw.predicted.throughput_per_s
    assert any("codecs (int8+zstd) change the answer by" in line for line in told), told
    assert all(able for able in deployment.standbys), "both speak it"

    inputs = np.random.default_rng(1).standard_normal((3, 64, 256)).astype(np.float32)
    async with Supervisor() as tasks:
        clients = {address: NodeClient(address) for address in deployment.addresses.values()}
        stream = FrameStream(deployment, StreamOptions(), clients.__getitem__, tasks)
        await stream.open()
        for each in inputs:
            await stream.send([from_array(each)])
        stream.finish()
        answers = [to_array(answer.tensors[0]) async for answer in stream.answers()]
        await stream.close()
        for client in clients.values():
            await client.close()
    session = make_engine().load(MODEL, LoadOptions())
    wanted = [to_array(session.run([from_array(each)])[0]) for each in inputs]
    change = largest_change([({"y": w}, {"y": a}) for w, a in zip(wanted, answers, strict=True)])
    assert 0 < change.relative < ANY.answer_change


@pytest.mark.parametrize(
    ("allowed", "used", "given_up"), [(2e-3, "fp16+zstd", ["int8"]), (1e-6, "zstd", ["int8", "fp16"])]
)
async def test_what_changes_answers_too_much_is_planned_again_without(
    pair: Pair, allowed: float, used: str, given_up: list[str]
) -> None:
    told: list[str] = []
    limits = Limits(codecs=CODECS[1:], answer_change=allowed)
    plan = await pair.client.plan(MODEL, PlanOptions(stages=2, limits=limits), told.append)
    assert codec_of(plan) == used, told
    again = [line.split(":")[0] for line in told if "planned again" in line]
    assert again == [f"planned again without {loss}" for loss in given_up]
    left = tuple(codec for codec in CODECS[1:] if loss_of(codec) not in given_up)
    assert plan.limits == Limits(codecs=left, answer_change=allowed), "who plans later need not find out again"


async def test_a_given_plan_is_held_to_the_same(pair: Pair) -> None:
    limits = Limits(codecs=CODECS[1:], answer_change=1e-6)
    plan = await pair.client.plan(MODEL, PlanOptions(stages=2, limits=limits), lambda line: None)
    head = dataclasses.replace(plan.stages[0], codec="int8")
    forced = dataclasses.replace(plan, stages=(head, plan.stages[1]))
    with pytest.raises(VerificationFailed, match="codecs between the stages change output 'y' by"):
        await pair.client.deploy(MODEL, "given", PlanOptions(forced=forced), lambda line: None)
    deployment = await pair.client.deploy(MODEL, "given", PlanOptions(forced=plan), lambda line: None)
    assert codec_of(deployment.plan) == "zstd"


async def test_a_given_plan_with_a_codec_towards_clients_is_refused(pair: Pair) -> None:
    plan = await pair.client.plan(MODEL, PlanOptions(stages=2), lambda line: None)
    tail = dataclasses.replace(plan.stages[1], codec="int8")
    with pytest.raises(UsageError, match="clients speak only 'raw'"):
        await pair.client.plan(
            MODEL, PlanOptions(forced=dataclasses.replace(plan, stages=(plan.stages[0], tail))), lambda line: None
        )


def speaker(name: str, hardware: str, *codecs: CodecSpeed) -> Capabilities:
    provider = (Provider("CPUExecutionProvider", True),)
    return Capabilities(
        NodeId(name * 32),
        name,
        "x86_64",
        1,
        1,
        1,
        1,
        provider,
        "1",
        1,
        1,
        NodeState.READY,
        "1",
        hardware,
        "1x1",
        codecs,
    )


async def test_bytes_are_those_of_what_crosses_and_times_those_of_the_type() -> None:
    model = read_model_bytes(MODEL)
    graph = summarise(model)
    nodes = [
        speaker("a", "pi", CodecSpeed("int8", 1e-9, 3e-9), CodecSpeed("newer", 1.0, 1.0)),
        speaker("b", "pi", CodecSpeed("int8", 3e-9, 5e-9)),
        speaker("c", "desk", CodecSpeed("int8", 1e-10, 1e-10), CodecSpeed("zstd", 1e-9, 1e-9)),
    ]
    (int8,) = await find_codecs(nodes, model, graph, CODECS[1:], lambda line: None)
    assert int8.name == "int8", "one device alone speaks zstd"
    assert [int8.seconds_of(node.node_id) for node in nodes] == [(2e-9, 4e-9), (2e-9, 4e-9), (1e-10, 1e-10)]
    assert set(int8.factors or {}) == {cut.position for cut in graph.cuts[1:-1]}
    assert all(factor == 0.25 for factor in (int8.factors or {}).values())
    assert await find_codecs(nodes, model, graph, (), lambda line: None) == ()
    every = [dataclasses.replace(node, codecs=SPEEDS) for node in nodes]
    found = await find_codecs(every, model, graph, CODECS[1:], lambda line: None)
    assert [codec.name for codec in found] == list(CODECS[1:])
    packed = found[-1]
    behind_relu = [p for p in (packed.factors or {}) if graph.cut_at[p].tensors[0].startswith("h")]
    assert behind_relu
    assert max((packed.factors or {})[p] for p in behind_relu) < 0.2


def test_a_change_counts_against_what_tells_answers_apart() -> None:
    apart = [np.array([[1000.0, 1000.0 + step]]) for step in (-1.0, 1.0)]
    off = [each + 0.1 for each in apart]
    change = largest_change([({"y": a}, {"y": b}) for a, b in zip(apart, off, strict=True)])
    assert change.relative == pytest.approx(0.1 / np.sqrt(0.5))
    (alone,) = [largest_change([({"y": apart[0]}, {"y": off[0]})])]
    assert alone.relative == pytest.approx(1e-4, rel=0.01)
    equal = largest_change([({"y": a}, {"y": a + 1e-4}) for a in apart])
    assert equal.relative == 0, "what the proof of equality lets pass"
    constant = largest_change([({"y": np.ones((1, 2))}, {"y": np.full((1, 2), 1.1)}) for _ in range(2)])
    assert constant.relative == np.inf
    broken = largest_change([({"y": apart[0]}, {"y": np.array([[np.nan, 1.0]])})])
    assert broken.relative == np.inf
    infinite = np.array([[np.inf, 1.0]])
    assert largest_change([({"y": infinite}, {"y": infinite})] * 2).relative == 0
    counted = largest_change([({"y": np.array([1, 2, 3, 4])}, {"y": np.array([1, 2, 3, 5])})])
    assert counted.relative == 0.25


def test_exact_codecs_change_nothing() -> None:
    model = read_model_bytes(MODEL)
    graph = summarise(model)
    cuts = [0, graph.cuts[2].position, len(graph.groups)]
    stages = [Stage(segment_between(graph, a, b), (), 0.0, codec="zstd") for a, b in pairwise(cuts)]
    assert measure_change(make_engine(), model, graph, stages).relative < 1e-6
    lossy = [dataclasses.replace(stage, codec="int8") for stage in stages]
    assert 1e-4 < measure_change(make_engine(), model, graph, lossy).relative < 0.02
