"""The check of `scripts/check_admission`: two nodes on this machine, one of them on an emulated processor.

Verdicts are held against plain ONNX Runtime on both processors. Where this processor has no VNNI either, the folder is
given the figures of one that has: 8-bit weights are then offered, and both nodes must refuse them. How the chosen
variant compares with the fastest of those admitted on a device is printed: all of them in turns, streams of frames
through the mesh, medians of ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from overflowing_model import make_bright, train_overflowing  # noqa: E402 - after the path to this clone

from mesh.client.mesh_client import Mesh, Model  # noqa: E402
from mesh.core.ids import NodeId  # noqa: E402
from mesh.core.plan import Limits, PlanOptions  # noqa: E402

EMULATOR = "qemu-x86_64"
PROCESSOR = "Haswell"
"""AVX2, no AVX-512 and no VNNI."""

HERE, EMULATED = "here", "avx2"
READY_WITHIN_S = 120.0
COMMAND_LIMIT_S = 900.0
MOST_APART_POINTS = 0.5
MAX_DROP_POINTS = 1.0
WANTED_SHARE = 0.98
FRAMES_PER_TURN = 32

JUDGE = """
import sys, numpy as np, onnxruntime
samples, labels, unfused, *files = sys.argv[1:]
unfused = unfused == "unfused"
x, y = np.load(samples), np.load(labels)
name = x.files[0]
for file in files:
    options = onnxruntime.SessionOptions()
    if unfused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    answers = [session.run(None, {name: each})[0].argmax() for each in x[name]]
    print(float(np.mean(np.array(answers) == y["labels"])))
"""


def make_emulated_python(folder: Path) -> Path:
    """A `python` that runs on the emulated processor, and its children as well; with this one's packages."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {EMULATOR} -cpu {PROCESSOR} -0 "{python}" "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def run(program: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False
    )
    assert done.returncode == 0, f"{' '.join(program[:6])}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def nodes(pythons: dict[str, Path], work: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A daemon per processor, until the block ends; their addresses by name."""
    running: list[subprocess.Popen[str]] = []
    addresses: dict[str, str] = {}
    try:
        for name, python in pythons.items():
            program = [str(python), "-m", "nodes", "node", "--name", name, "--data-dir", str(work / name)]
            program += ["--listen", "127.0.0.1:0", "--no-mdns", "--threads", "1", "--json"]
            with (work / f"{name}.log").open("w") as log:
                process = subprocess.Popen(
                    program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
                )
            running.append(process)
            assert process.stdout is not None
            told = process.stdout.readline()
            assert told, f"{name} ended: {(work / f'{name}.log').read_text()[-2000:]}"
            addresses[name] = json.loads(told)["address"]
        yield addresses
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=READY_WITHIN_S)


def wait_until_ready(mesh: list[str], environment: dict[str, str]) -> dict[str, str]:
    """The ids of the nodes by name, once all have measured themselves."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        found = json.loads(run([*mesh, "nodes", "--json"], environment))["nodes"]
        if {node["name"] for node in found if node["state"] == "ready"} == {HERE, EMULATED}:
            return {node["name"]: node["id"] for node in found}
    raise AssertionError(f"the nodes were not ready within {READY_WITHIN_S:g} s")


def write_inputs(work: Path, options: argparse.Namespace) -> tuple[Path, Path, Path]:
    """Model, samples and labels: those that were given, or those that overflow by design."""
    if options.model is not None:
        return options.model, options.samples, options.labels
    model, samples, labels = work / "model.onnx", work / "samples.npz", work / "labels.npz"
    with np.load(ROOT / "nodes" / "demo_data" / "digits_test.npz") as archive:
        images, wanted = make_bright(archive["image"]), archive["label"]
    model.write_bytes(train_overflowing(images, wanted).SerializeToString())
    np.savez(samples, image=images)
    np.savez(labels, labels=wanted)
    return model, samples, labels


def write_judged(folder: Path, work: Path) -> tuple[Path, Path]:
    """The samples and labels that devices are judged by, for plain ONNX Runtime."""
    from mesh.optimize.golden_set import GOLDEN_FILE, decode_golden_set

    taken = decode_golden_set((folder / GOLDEN_FILE).read_bytes())
    name = next(iter(taken.samples[0]))
    samples, labels = work / "judged.npz", work / "judged_labels.npz"
    np.savez(samples, **{name: np.stack([feeds[name] for feeds in taken.samples])})  # type: ignore[arg-type]
    assert taken.golden.labels is not None
    np.savez(labels, labels=taken.golden.labels)
    return samples, labels


def measure_plainly(
    python: Path, judged: list[str], files: dict[str, str], environment: dict[str, str], how: str = "fused"
) -> dict[str, float]:
    """Accuracy of each file with plain ONNX Runtime; "unfused" multiplies in float, where nothing overflows."""
    shares = run([str(python), "-c", JUDGE, *judged, how, *files.values()], environment).split()
    return dict(zip(files, map(float, shares), strict=True))


def has_vnni() -> bool:
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_vnni" in flags or "avx_vnni" in flags


def offer_as_with_vnni(folder: Path, unfused: dict[str, float]) -> None:
    """Turns a folder that offers everything into what a processor with VNNI would have offered of it."""
    path = folder / "report.json"
    report = json.loads(path.read_text())
    report["reference"]["max_drop_points"] = MAX_DROP_POINTS
    for entry in report["offered"]:
        entry["golden_accuracy"] = unfused[entry["variant"]]
    least = unfused["float"] - MAX_DROP_POINTS / 100
    report["offered"] = [entry for entry in report["offered"] if entry["golden_accuracy"] >= least]
    path.write_text(json.dumps(report))
    for file in folder.glob("*.onnx"):
        if file.stem not in {entry["variant"] for entry in report["offered"]}:
            file.unlink()


def check_verdicts(
    admissions: list[dict[str, Any]], ids: dict[str, str], plain: dict[str, dict[str, float]]
) -> dict[str, set[str]]:
    """What is admitted where, by name of the node."""
    admitted: dict[str, set[str]] = {HERE: set(), EMULATED: set()}
    by_id = {node: name for name, node in ids.items()}
    accuracy: dict[str, dict[str, float]] = {HERE: {}, EMULATED: {}}
    for each in admissions:
        where = by_id[each["device"]]
        accuracy[where][each["variant"]] = each["accuracy"]
        apart = 100 * abs(each["accuracy"] - plain[where][each["variant"]])
        told = "admitted" if each["admitted"] else f"refused: {each['reason']}"
        print(f"{where:5} {each['variant']:18} {each['accuracy']:.2%}, {apart:.2f} points from plain runtime; {told}")
        assert apart <= MOST_APART_POINTS, "the figure is not what ONNX Runtime gives on that processor"
        if each["admitted"]:
            admitted[where].add(each["variant"])
    both = admitted[HERE] & admitted[EMULATED]
    for variant in both:
        apart = 100 * abs(accuracy[HERE][variant] - accuracy[EMULATED][variant])
        assert apart <= MOST_APART_POINTS, f"{variant} is admitted on both, {apart:.2f} points apart"
    refused = admitted[HERE] - admitted[EMULATED]
    print(f"refused on {EMULATED} only: {', '.join(sorted(refused)) or 'none'}; on both: {', '.join(sorted(both))}")
    return admitted


async def compare(
    addresses: list[str], folder: Path, device: str, variants: list[str], rounds: int
) -> dict[str, float]:
    """Milliseconds of engine time per frame of each variant over that of the first, all loaded on one device."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    async with Mesh(peers=addresses, mdns=False, costs=None) as mesh:
        models = {}
        for name in variants:
            options = PlanOptions(stages=1, limits=Limits(only=(NodeId(device),)))
            data = (folder / f"{name}.onnx").read_bytes()
            deployed = await mesh.coordinator.deploy(data, f"compared-{name}", options, lambda text: None)
            models[name] = Model(mesh, deployed)
        feeds = {
            spec.name: np.zeros([s if isinstance(s, int) else 1 for s in spec.shape or ()], np.float32)
            for spec in models[variants[0]].inputs
        }
        for number in range(rounds + 1):
            for name in variants if number % 2 else reversed(variants):
                hops = [answer.hops[0].compute_us async for answer in models[name].stream([feeds] * FRAMES_PER_TURN)]
                if number:  # the first round warms up
                    taken[name].append(statistics.median(hops))
        for name in variants:
            await mesh.undeploy(f"compared-{name}")
    first = taken[variants[0]]
    return {name: statistics.median(a / b for a, b in zip(times, first, strict=True)) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--labels", type=Path)
    options = parser.parse_args()
    if platform.machine() != "x86_64" or shutil.which(EMULATOR) is None:
        sys.exit(f"error: this check needs an x86-64 machine with {EMULATOR}: apt install qemu-user")
    with tempfile.TemporaryDirectory(prefix="infermesh-admission-") as name:
        check(Path(name), options)


def check(work: Path, options: argparse.Namespace) -> None:
    pythons = {HERE: Path(sys.executable), EMULATED: make_emulated_python(work / "emulated")}
    environment = {**os.environ, "MESH_DATA_DIR": str(work / "commands"), "MESH_MDNS": "0"}
    environment.pop("MESH_COORDINATOR", None)
    model, samples, labels = write_inputs(work, options)
    folder = work / "variants"
    mesh = [sys.executable, "-m", "nodes"]
    with nodes(pythons, work, environment) as addresses:
        environment["MESH_PEER"] = " ".join(addresses.values())
        ids = wait_until_ready(mesh, environment)
        given = ["--calibration", str(samples), "--labels", str(labels)]
        given += ["--max-drop", str(MAX_DROP_POINTS if has_vnni() else 100)]
        run([*mesh, "optimize", str(model), *given, "--out", str(folder)], environment)
        judged = [str(each) for each in write_judged(folder, work)]
        if not has_vnni():
            print("this processor has no VNNI: the folder is given the figures of one that has")
            files = {each.stem: str(each) for each in folder.glob("*.onnx")}
            offer_as_with_vnni(folder, measure_plainly(pythons[HERE], judged, files, environment, "unfused"))
        deployed = json.loads(run([*mesh, "deploy", str(folder), "--name", "everywhere", "--json"], environment))
        files = {each.stem: str(each) for each in sorted(folder.glob("*.onnx"))}
        plain = {where: measure_plainly(python, judged, files, environment) for where, python in pythons.items()}
        admitted = check_verdicts(deployed["admission"], ids, plain)
        if options.model is None:
            assert "int8" in plain[EMULATED], "8-bit weights are right where nothing overflows, and were not offered"
            assert "int8" not in admitted[EMULATED], "8-bit weights overflow there, and were not refused"
            assert ("int8" in admitted[HERE]) == has_vnni(), "8-bit weights are right with VNNI and wrong without"
            assert "int8-safe" in admitted[HERE] & admitted[EMULATED], "7-bit weights cannot overflow"
        for where, other in ((HERE, EMULATED), (EMULATED, HERE)):
            told = run([*mesh, "deploy", str(folder), "--name", "alone", "--exclude", other, "--json"], environment)
            chosen = json.loads(told)["variant"]
            assert chosen in admitted[where], f"{chosen} was not admitted on {where}"
            ratios = asyncio.run(
                compare(list(addresses.values()), folder, ids[where], sorted(admitted[where]), options.rounds)
            )
            share = min(ratios.values()) / ratios[chosen]
            best = min(ratios, key=lambda each: ratios[each])
            print(
                f"{where}: {chosen} is chosen, {share:.3f} of the speed of {best}, the best measured; "
                f"{WANTED_SHARE} is asked for"
            )


if __name__ == "__main__":
    main()
