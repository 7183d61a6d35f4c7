"""Row 5 of scripts/bench_dataplane: four emulated boards, against the bound of the plan in force and against one.

The bound is the slowest stage of that plan: its part in a plain loop on a board of the same share of a core, or the
bytes that cross behind it at the link's rate.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_figures import interleave
from bench_fleet import CALL_LIMIT_S, MESH, ROOT, Peer, finish, popen, split, wait_until_measured
from bench_models import cut_bytes
from bench_rows import Bench

LAB = "bench"
BOARDS = 4
CASES = (
    ("mobilenetv2", "100 Mbit"),
    ("mobilenetv2", "1 Gbit"),
    ("resnet18", "1 Gbit"),
    ("vit_tiny", "100 Mbit"),
    ("minilm", "100 Mbit"),
)
BITS_PER_S = {"100 Mbit": 100e6, "1 Gbit": 1e9}
FLEET = """
[[device]]
name = "board"
count = 4
cpu = 0.35
memory = "600MB"
rate = "{rate}"

[[device]]
name = "desk"
role = "client"
"""
"""The desk plans and measures; it has what the boards leave."""
SOURCE = ("--first-on", "board-1")
"""Frames are made in the head node, and the plan may know."""
ALL_CORES = (0, 1)


@dataclass
class Lab:
    def prefix(self, device: str) -> list[str]:
        return [*MESH, "lab", "exec", "--name", LAB, device, "--"]

    def call(self, *words: str) -> Any:
        return finish(popen([*self.prefix("desk"), "mesh", *words, "--json"], ALL_CORES))

    def throughput(self, name: str, seconds: float) -> float:
        return float(self.call("bench", name, "--seconds", str(seconds))["throughput_per_s"])

    def code(self, *words: str) -> int:
        """The exit code of a command that may fail."""
        process = popen([*self.prefix("desk"), "mesh", *words, "--json"], ALL_CORES, stderr=subprocess.DEVNULL)
        process.communicate(timeout=CALL_LIMIT_S)
        return process.returncode


@contextlib.contextmanager
def open_lab(file: Path, fleet: str) -> Iterator[Lab]:
    """A lab of the fleet whose text is `fleet`, written to `file`."""
    file.write_text(fleet)
    finish(popen([*MESH, "lab", "up", str(file), "--name", LAB, "--json"], ALL_CORES))
    try:
        yield Lab()
    finally:
        subprocess.run([*MESH, "lab", "down", "--name", LAB], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def row_5(bench: Bench) -> None:
    if bench.node_options:
        print("row 5: daemons of a lab take no node options; they run as they come", file=sys.stderr)
    for model, rate in CASES:
        if bench.only and model not in bench.only:
            continue
        with open_lab(bench.folder / "fleet.toml", FLEET.format(rate=rate.replace(" ", ""))) as boards:
            wait_until_measured(lambda boards=boards: boards.call("nodes")["nodes"], BOARDS)
            _four_boards(bench, boards, model, rate)


def _four_boards(bench: Bench, boards: Lab, model: str, rate: str) -> None:
    file = bench.model(model)
    plan = boards.call("deploy", str(file), "--name", "mesh", "--measure", *SOURCE)["plan"]
    boards.call("deploy", str(file), "--name", "one", "--stages", "1", *SOURCE)
    bound_per_s = 1 / max(_stage_seconds(bench, boards, file, plan, rate))
    works = [
        ("mesh", lambda: boards.throughput("mesh", bench.seconds)),
        ("one", lambda: boards.throughput("one", bench.seconds)),
    ]
    for sample in interleave(bench.rounds, works):
        figures = {
            "stages": float(len(plan["stages"])),
            "mesh per s": sample["mesh"],
            "bound per s": bound_per_s,
            "one device per s": sample["one"],
            "ratio to bound": sample["mesh"] / bound_per_s,
            "ratio to one device": sample["mesh"] / sample["one"],
        }
        bench.figures.add(f"5/{model} {rate}", figures)


def _stage_seconds(bench: Bench, boards: Lab, model: Path, plan: dict[str, Any], rate: str) -> list[float]:
    """Of each stage of the plan in force, on a board that does nothing else: computing, and sending what leaves it."""
    plan_file, parts = bench.folder / "in-force.json", bench.folder / f"{model.stem}-{rate.replace(' ', '')}"
    plan_file.write_text(json.dumps(plan))
    split(model, plan_file, parts)
    seconds = []
    sent = [*cut_bytes(model, plan["stages"]), 0]
    for index, (stage, size) in enumerate(zip(plan["stages"], sent, strict=True)):
        with Peer(ALL_CORES, "plain", str(parts / f"segment-{index}.onnx"), prefix=boards.prefix("board-1")) as plain:
            compute_s = 1 / float(plain.measure(bench.seconds)["throughput_per_s"])
        # Replicas take turns.
        seconds.append(max(compute_s / len(stage["devices"]), size * 8 / BITS_PER_S[rate]))
    return seconds
