"""Rows 1 to 4 of scripts/bench_dataplane: one node, two cores, processor time, and the wire; all on loopback.

Every row starts its daemons and its peers, then runs its rounds, in which everything that is compared takes turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench_figures import Figures, interleave
from bench_fleet import LOAD_S, Daemon, Fleet, Peer, finish, fleet, split
from bench_models import CARRY_1_MB, CARRY_200_KB, RELAYED_1_MIB, RELAYED_64_B, model_file, write_plan

FIRST, SECOND = (0,), (1,)
"""The two cores."""

LONG_MODELS = ("mobilenetv2", "resnet18")
"""Of row 1's throughput: 5 ms a frame or more."""
PIPELINE_MODELS = ("mobilenetv2", "squeezenet", "resnet18", "vit_tiny")
SMALL_FRAME_WINDOW = 64
LARGE_FRAME_WINDOW = 8


@dataclass
class Bench:
    """What all rows share."""

    folder: Path
    models: Path
    rounds: int
    seconds: float
    node_options: list[str]
    figures: Figures
    only: tuple[str, ...]
    """Models; empty for all."""

    def model(self, name: str) -> Path:
        return model_file(self.models, name)

    def wanted(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if not self.only or name in self.only]

    def open(self, stack: ExitStack, name: str, *cores: tuple[int, ...]) -> Fleet:
        return stack.enter_context(fleet(self.folder / name, cores, self.node_options))


def row_1(bench: Bench) -> None:
    """Client and daemon on one core, the engine on the other; a plain loop on the engine's core."""
    for model in bench.wanted(LONG_MODELS):
        _one_node(bench, model, lambda nodes, plain, name=model: _throughput(bench, nodes, plain, name))
    for model, size in (("mobilenetv2", "588 KiB"), ("mobilenetv2_64kb", "64 KiB")):
        if not bench.only or "mobilenetv2" in bench.only:
            _one_node(bench, model, lambda nodes, plain, said=size: _latency(bench, nodes, plain, said))


def _one_node(bench: Bench, model: str, measure: Callable[[Fleet, Peer], None]) -> None:
    with ExitStack() as stack:
        nodes = bench.open(stack, f"row-1-{model}-{time.monotonic_ns()}", FIRST)
        nodes.deploy(bench.model(model), "whole", "--stages", "1")
        daemon = nodes.daemons[0]
        before = daemon.thread_ticks()
        nodes.bench("whole", LOAD_S, "--source", "node")
        daemon.pin_engine(before, SECOND)
        plain = stack.enter_context(Peer(SECOND, "plain", str(bench.model(model))))
        measure(nodes, plain)


def _throughput(bench: Bench, nodes: Fleet, plain: Peer, name: str) -> None:
    def ours() -> float:
        return float(nodes.bench("whole", bench.seconds, "--source", "client", cores=FIRST)["throughput_per_s"])

    def theirs() -> float:
        return float(plain.measure(bench.seconds)["throughput_per_s"])

    for sample in interleave(bench.rounds, [("mesh", ours), ("plain", theirs)]):
        figures = {"mesh per s": sample["mesh"], "plain per s": sample["plain"]}
        bench.figures.add(f"1/{name}", {**figures, "throughput ratio": sample["mesh"] / sample["plain"]})


def _latency(bench: Bench, nodes: Fleet, plain: Peer, size: str) -> None:
    def ours() -> float:
        document = nodes.bench("whole", bench.seconds, "--source", "client", "--window", "1", cores=FIRST)
        return float(document["latency_ms"]["p50"])

    def theirs() -> float:
        return float(plain.measure(bench.seconds)["p50_ms"])

    for sample in interleave(bench.rounds, [("mesh", ours), ("plain", theirs)]):
        figures = {"mesh p50 ms": sample["mesh"], "plain p50 ms": sample["plain"]}
        bench.figures.add(f"1/{size}", {**figures, "added p50 ms": sample["mesh"] - sample["plain"]})


def row_2(bench: Bench) -> None:
    """Two stages, and two whole copies, on two cores; a plain loop on one of them."""
    for model in bench.wanted(PIPELINE_MODELS):
        with ExitStack() as stack:
            nodes = bench.open(stack, f"row-2-{model}", FIRST, SECOND)
            file = bench.model(model)
            nodes.deploy(file, "two", "--stages", "2")
            for daemon in nodes.daemons:
                plan = write_plan(file, [daemon.id], bench.folder / f"{model}-{daemon.name}.json")
                nodes.deploy(file, f"copy-{daemon.name}", "--plan", str(plan))
            plains = [stack.enter_context(Peer(core, "plain", str(file))) for core in (SECOND, FIRST)]
            _two_cores(bench, nodes, plains, model)


def _two_cores(bench: Bench, nodes: Fleet, plains: list[Peer], model: str) -> None:
    def two() -> float:
        return float(nodes.bench("two", bench.seconds)["throughput_per_s"])

    def copies() -> float:
        names = [f"copy-{daemon.name}" for daemon in nodes.daemons]
        running = [nodes.start("bench", name, "--seconds", str(bench.seconds)) for name in names]
        return sum(float(finish(process)["throughput_per_s"]) for process in running)

    def theirs() -> float:
        return float(plains[0].measure(bench.seconds)["throughput_per_s"])

    def both() -> float:
        """What the two cores give at once, which is not always twice what one gives alone."""
        for plain in plains:
            plain.ask(bench.seconds)
        return sum(float(plain.answer()["throughput_per_s"]) for plain in plains)

    for sample in interleave(bench.rounds, [("two", two), ("copies", copies), ("plain", theirs), ("both", both)]):
        figures = {"plain per s": sample["plain"], "two stages per s": sample["two"]}
        ratios = {
            name: sample[key] / sample["plain"]
            for name, key in (("two stages", "two"), ("two copies", "copies"), ("two plain loops", "both"))
        }
        shares = {
            f"{name} of two plain loops": sample[key] / sample["both"]
            for name, key in (("stages", "two"), ("copies", "copies"))
        }
        bench.figures.add(f"2/{model}", {**figures, **ratios, **shares})


def row_3(bench: Bench) -> None:
    """Two stages of next to no computing: what the daemons take per frame, less what the parts take in a plain loop."""
    for name, size, said in (("carry_200kb", CARRY_200_KB, "200 KiB"), ("carry_1mb", CARRY_1_MB, "1 MiB")):
        with ExitStack() as stack:
            nodes = bench.open(stack, f"row-3-{name}", FIRST, SECOND)
            file = bench.model(name)
            plan = write_plan(file, [each.id for each in nodes.daemons], bench.folder / f"{name}.json", size)
            nodes.deploy(file, "carry", "--plan", str(plan))
            parts = bench.folder / name
            split(file, plan, parts)
            plains = [
                stack.enter_context(Peer(SECOND, "plain", str(part))) for part in sorted(parts.glob("segment-*.onnx"))
            ]
            _processor_time(bench, nodes, plains, said)


def _processor_time(bench: Bench, nodes: Fleet, plains: list[Peer], said: str) -> None:
    def used(daemons: list[Daemon]) -> float:
        return sum(daemon.cpu_s() for daemon in daemons)

    def ours() -> float:
        frames, before = nodes.frames("carry"), used(nodes.daemons)
        nodes.bench("carry", bench.seconds)
        after = used(nodes.daemons)
        return (after - before) / max(1, nodes.frames("carry") - frames) * 1e3

    def theirs() -> float:
        return sum(float(plain.measure(bench.seconds / 2)["cpu_ms"]) for plain in plains)

    for sample in interleave(bench.rounds, [("mesh", ours), ("plain", theirs)]):
        beyond = (sample["mesh"] - sample["plain"]) / len(plains)
        figures = {"daemons ms per frame": sample["mesh"], "plain ms per frame": sample["plain"]}
        bench.figures.add(f"3/{said}", {**figures, "cpu ms per frame and stage": beyond})


def row_4(bench: Bench) -> None:
    """Tensors that pass from one daemon to the next, against bytes on a bare gRPC stream between two processes."""
    cases = (
        ("relay_1mib", RELAYED_1_MIB, "1 MiB", LARGE_FRAME_WINDOW),
        ("relay_64b", RELAYED_64_B, "64 B", SMALL_FRAME_WINDOW),
    )
    for name, size, said, window in cases:
        with ExitStack() as stack:
            nodes = bench.open(stack, f"row-4-{name}", FIRST, SECOND)
            file = bench.model(name)
            plan = write_plan(file, [each.id for each in nodes.daemons], bench.folder / f"{name}.json", size)
            nodes.deploy(file, "relay", "--plan", str(plan))
            server = stack.enter_context(Peer(SECOND, "grpc-server"))
            bare = stack.enter_context(Peer(FIRST, "grpc-client", server.hello["address"], str(size)))
            _wire(bench, nodes, bare, said, size, window)


def _wire(bench: Bench, nodes: Fleet, bare: Peer, said: str, size: int, window: int) -> None:
    def ours() -> float:
        return float(nodes.bench("relay", bench.seconds, "--window", str(window))["throughput_per_s"])

    def theirs() -> float:
        return float(bare.measure(bench.seconds)["frames_per_s"])

    for sample in interleave(bench.rounds, [("mesh", ours), ("bare", theirs)]):
        figures = {"frames per s": sample["mesh"], "bare frames per s": sample["bare"]}
        if size >= RELAYED_1_MIB:
            figures |= {"MB per s": sample["mesh"] * size / 1e6, "bare MB per s": sample["bare"] * size / 1e6}
        bench.figures.add(f"4/{said}", {**figures, "ratio to bare gRPC": sample["mesh"] / sample["bare"]})
