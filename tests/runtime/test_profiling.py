"""How time is spread over operator groups: kernels give proportions, parts the price of a call and of a cut."""

from __future__ import annotations

import math
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from mesh.core.report import KernelTime, ModelProfile
from mesh.core.segments import segment_between
from mesh.engines.contract import LoadOptions
from mesh.engines.profile_process import profile_model
from mesh.errors import LoadFailed, Timeout
from mesh.model.extract import extract
from mesh.model.kernels import share_kernels
from mesh.model.read import read_model_bytes
from mesh.model.summarise import summarise
from mesh.runtime.profiling import part_positions, spread_profile
from scripts.make_models import make_mobilenetv2, make_transformer

MODEL = read_model_bytes(make_mobilenetv2(96).SerializeToString())
GRAPH = summarise(MODEL)
END = len(GRAPH.groups)


def test_parts_cover_the_model_with_about_equal_work() -> None:
    positions = part_positions(GRAPH)
    assert positions[0] == 0 and positions[-1] == END and positions == sorted(set(positions))
    shares = [GRAPH.segment_flops(start, end) / GRAPH.flops for start, end in pairwise(positions)]
    assert len(shares) == 4 and max(shares) < 0.35


def test_what_a_profile_does_not_tell_is_estimated() -> None:
    times = spread_profile(MODEL, GRAPH, 2.0, ModelProfile(), [])
    assert times.whole_seconds == pytest.approx(2.0) and times.cut_seconds == times.run_seconds == 0
    assert times.seconds(0, 5) == pytest.approx(2.0 * GRAPH.segment_flops(0, 5) / GRAPH.flops)


def test_kernels_are_known_by_node_tensor_fusion_or_neighbour() -> None:
    nodes = MODEL.proto.graph.node
    first, last = GRAPH.groups[3].nodes, GRAPH.groups[7].nodes
    names = [nodes[first[0]].name, f"{nodes[first[-1]].output[0]}_nchwc", f"{nodes[last[0]].name}/Fusion", "Reorder_9"]
    seconds = share_kernels(MODEL, GRAPH, [KernelTime(name, 1.0) for name in names])
    assert seconds[3] == 2.0 and seconds[7] == 2.0 and sum(seconds) == 4.0
    between = [
        KernelTime("Reorder", 1.0),
        KernelTime(names[0], 1.0),
        KernelTime("Gelu", 1.0),
        KernelTime(names[2], 1.0),
    ]
    seconds = share_kernels(MODEL, GRAPH, between)
    assert (seconds[3], seconds[7]) == (2.5, 1.5)
    assert sum(share_kernels(MODEL, GRAPH, [KernelTime("unknown", 1.0)])) == 0


def profile(tmp_path: Path, budget_s: float) -> ModelProfile:
    files = [tmp_path / "whole"]
    files[0].write_bytes(MODEL.data)
    for start, end in pairwise(part_positions(GRAPH)):
        files.append(tmp_path / f"part-{start}")
        files[-1].write_bytes(extract(MODEL, GRAPH, segment_between(GRAPH, start, end)))
    return profile_model(files[0], files[1:], LoadOptions(), budget_s, threading.Event())


def test_a_real_profile_tells_of_every_kernel_and_part(tmp_path: Path) -> None:
    found = profile(tmp_path, 0.05)
    assert len(found.part_peak_bytes) == 4 and 0 < max(found.part_peak_bytes) < found.peak_bytes < 1 << 30
    assert len(found.part_ratios) == 4 and all(0 < ratio < 1.5 for ratio in found.part_ratios)
    seconds = share_kernels(MODEL, GRAPH, found.kernels)
    convolutions = [group.index for group in GRAPH.groups if "Conv" in group.kinds]
    assert all(seconds[index] > 0 for index in convolutions)
    assert math.fsum(seconds) == pytest.approx(math.fsum(kernel.seconds for kernel in found.kernels))
    times = spread_profile(MODEL, GRAPH, 3.0, found, part_positions(GRAPH))
    assert times.whole_seconds == pytest.approx(3.0) and min(times.group_seconds) >= 0


def test_what_cannot_be_profiled_says_why_and_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"no model")
    with pytest.raises(LoadFailed, match="cannot be profiled"):
        profile_model(broken, [], LoadOptions(), 0.05, threading.Event())
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Timeout):
        profile_model(broken, [], LoadOptions(), 0.05, stopped)


def test_fused_kernels_of_a_transformer_find_their_groups() -> None:
    model = read_model_bytes(make_transformer(layers=1).SerializeToString())
    graph = summarise(model)
    place = next(group for group in graph.groups if "MatMul" in group.kinds)
    node = next(model.proto.graph.node[i] for i in place.nodes if model.proto.graph.node[i].op_type == "MatMul")
    assert share_kernels(model, graph, [KernelTime(f"{node.name}/MatMulAddFusion", 1.0)])[place.index] == 1.0
