"""What each wire codec makes of each legal cut of a model, on real data.

usage: scripts/check_codecs MODEL.onnx DATA.npz [--samples N]

DATA holds `x`, samples along its first axis, and `y`, their labels, where there are any. For every cut the part before
it runs on every sample, what crosses is coded and decoded as between two nodes, and the part behind it runs on that.
Shown are the bytes over those of the tensors, the points of top-1 that are lost (without labels: answers whose top-1 is
another than the whole model's) and the milliseconds per megabyte at each end. Behind an activation, int8+zstd shall
make 5 times fewer bytes at 0.2 points at most, in less than 1 ms per megabyte at each end.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - after the path to this clone
import onnxruntime  # noqa: E402

from mesh.arrays import Array, from_array, to_array  # noqa: E402
from mesh.codecs import decode_tensor, encode_tensor, spoken_codecs  # noqa: E402
from mesh.core.coding import CodedTensor  # noqa: E402
from mesh.core.graph import Graph  # noqa: E402
from mesh.model.extract import extract, segment_between  # noqa: E402
from mesh.model.read import SourceModel, read_model  # noqa: E402
from mesh.model.summarise import summarise  # noqa: E402

MAX_POINTS = 0.2
LEAST_RATIO = 5.0
TIMED_BYTES = 1 << 20


class Part:
    """One segment, ready to run; what passes by it is kept."""

    def __init__(self, model: SourceModel, graph: Graph, start: int, end: int) -> None:
        self._segment = segment_between(graph, start, end)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        data = extract(model, graph, self._segment)
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, frame: dict[str, Array]) -> dict[str, Array]:
        names = list(self._segment.produces)
        made = self._session.run(names, {name: frame[name] for name in self._segment.consumes}) if names else []
        return {name: frame[name] for name in self._segment.relays} | dict(zip(names, made, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    options = parser.parse_args()
    model = read_model(options.model)
    graph = summarise(model)
    with np.load(options.data) as arrays:
        samples = arrays["x"][: options.samples].astype(np.float32)
        labels = arrays["y"][: options.samples] if "y" in arrays else None
    (spec,) = model.inputs
    frames = [{spec.name: sample[None]} for sample in samples]
    output = graph.outputs[0].name
    whole = Part(model, graph, 0, len(graph.groups))
    right = np.array([int(whole.run(frame)[output].argmax()) for frame in frames])
    wanted = right if labels is None else labels
    reference = float(np.mean(right == wanted))
    print(f"{options.model.name}: {len(frames)} samples, top-1 {reference:.2%}, {len(graph.cuts) - 2} cuts")
    print(f"{'cut':>4} {'bytes':>8} {'zeros':>6}  " + "  ".join(f"{codec:^18}" for codec in spoken_codecs()[1:]))
    failures = [
        line for cut in graph.cuts[1:-1] for line in check(model, graph, cut.position, frames, wanted, reference)
    ]
    for line in failures:
        print(line)
    return 1 if failures else 0


def check(
    model: SourceModel, graph: Graph, position: int, frames: list[dict[str, Array]], wanted: Array, reference: float
) -> list[str]:
    """Prints the row of one cut; returns what is not as it should be."""
    before, after = Part(model, graph, 0, position), Part(model, graph, position, len(graph.groups))
    crossing = [before.run(frame) for frame in frames]
    output = graph.outputs[0].name
    values = np.concatenate([value.reshape(-1) for value in crossing[0].values() if value.dtype.kind == "f"])
    zeros = float(np.mean(values == 0))
    cells, complaints = [], []
    for codec in spoken_codecs()[1:]:
        plain = coded = 0
        top = []
        for frame in crossing:
            received = {}
            for name, value in frame.items():
                tensor = from_array(value)
                sent = encode_tensor(tensor, codec)
                plain, coded = plain + len(tensor.data), coded + len(sent.data)
                received[name] = to_array(decode_tensor(sent) if isinstance(sent, CodedTensor) else sent)
            top.append(int(after.run(received)[output].argmax()))
        lost = 100 * (reference - float(np.mean(np.array(top) == wanted)))
        cells.append(f"{plain / coded:5.2f}x {lost:+5.2f} pt     ")
        if lost > MAX_POINTS + 1e-9:
            complaints.append(f"cut {position}, {codec}: {lost:.2f} points are lost, {MAX_POINTS} are allowed")
        if codec == "int8+zstd" and zeros > 0.3 and plain / coded < LEAST_RATIO:
            complaints.append(
                f"cut {position}, {codec}: {plain / coded:.2f} times fewer bytes, {LEAST_RATIO} are wanted"
            )
    print(f"{position:>4} {plain // len(frames):>8} {zeros:>6.0%}  " + "  ".join(f"{cell:^18}" for cell in cells))
    some = crossing[: 1 + TIMED_BYTES // max(1, plain // len(frames))]
    timed = np.concatenate([value.reshape(-1) for frame in some for value in frame.values() if value.dtype.kind == "f"])
    print(f"{'':>20}  " + "  ".join(f"{time_ends(timed, codec):^18}" for codec in spoken_codecs()[1:]))
    return complaints


def time_ends(values: Array, codec: str) -> str:
    """Milliseconds per megabyte for writing and for reading; `values` are of as many samples as make one."""
    tensor = from_array(values[: TIMED_BYTES // 4].astype(np.float32))
    coded = encode_tensor(tensor, codec)
    if not isinstance(coded, CodedTensor):
        return "-"
    times: list[tuple[float, float]] = []
    for _ in range(9):
        began = time.perf_counter()
        encode_tensor(tensor, codec)
        middle = time.perf_counter()
        decode_tensor(coded)
        times.append((middle - began, time.perf_counter() - middle))
    writing, reading = (sorted(column)[len(times) // 2] * 1e9 / len(tensor.data) for column in zip(*times, strict=True))
    return f"{writing:4.2f} {reading:4.2f} ms/MB"


if __name__ == "__main__":
    sys.exit(main())
