"""Times what the optimizer's passes make against the float model: speed and size, not accuracy (weights are random).

usage: scripts/bench_optimizer [--only NAME...] [--rounds N] [--json]

Each network is prepared, each pass is applied on a few made-up samples, and all variants are timed in turns with the
float model: one thread, ONNX Runtime, one run each per round, ratios within rounds, medians with their spread. Targets
are for processors with VNNI (`avx512_vnni` or `avx_vnni` among its flags).

Where OpenVINO is installed, it runs each variant in the same rounds (`... openvino speed`, over the float model in ONNX
Runtime), as a node would have it do; its target is for processors with AMX (`amx_int8`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

import make_models  # noqa: E402 - after the path to this clone
from bench_figures import Figures, Target, interleave  # noqa: E402

from mesh.arrays import from_array  # noqa: E402
from mesh.core.tensor import TensorSpec  # noqa: E402
from mesh.engines import OPENVINO, has_openvino, make_engine  # noqa: E402
from mesh.engines.contract import LoadOptions  # noqa: E402
from mesh.errors import LoadFailed  # noqa: E402
from mesh.model.read import read_model_bytes  # noqa: E402
from mesh.optimize.contract import Material  # noqa: E402
from mesh.optimize.quantiser import MeasuredRanges  # noqa: E402
from mesh.optimize.running import open_session  # noqa: E402
from mesh.optimize.samples import read_samples  # noqa: E402
from mesh.optimize.table import PASSES  # noqa: E402

NETWORKS: dict[str, tuple[str, ...]] = {
    "resnet18": ("int8", "int8-safe", "pruned", "pruned-int8"),
    "resnet50": ("int8", "int8-safe", "pruned", "pruned-int8"),
    "mobilenetv2": ("int8", "int8-safe", "pruned", "pruned-int8"),
    "minilm": ("int8-dynamic",),
}
TARGETS = [
    Target.parse(text)
    for text in (
        "resnet*/int8 speed>=2.5",
        "mobilenetv2/int8 speed>=1.7",
        "minilm/int8-dynamic speed>=2.2",
        "resnet*/pruned-int8 speed>=4.5",
        "*/int8 size>=3.6",
        "*/int8-dynamic size>=3.6",
    )
]
AMX_TARGETS = [Target.parse("resnet18/int8 openvino speed>=8")]
SAMPLES = 8
"""Enough for ranges: nothing is judged here."""
MODEL_INPUTS = {"minilm": 1000}
"""Integer inputs are drawn below this."""
SEED = 7


def draw(name: str, specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    random = np.random.default_rng(SEED)
    arrays = {}
    for spec in specs:
        shape = [SAMPLES, *(each if isinstance(each, int) else 1 for each in spec.shape or ())]
        if spec.dtype.is_float:
            arrays[spec.name] = random.standard_normal(shape).astype(np.float32)
        else:
            arrays[spec.name] = random.integers(0, MODEL_INPUTS[name], shape).astype(spec.dtype.label)
    return arrays


def runner(content: bytes, feeds: dict[str, Any]) -> Callable[[], object]:
    session = open_session(content, optimised=True, threads=1)
    return lambda: session.run(None, feeds)


def openvino_runners(
    name: str, data: dict[str, bytes], feeds: dict[str, Any], figures: Figures
) -> dict[str, Callable[[], object]]:
    """Of the variants that OpenVINO takes; of the others it is said why it does not."""
    found: dict[str, Callable[[], object]] = {}
    for each, content in data.items():
        try:
            session = make_engine(OPENVINO).load(content, LoadOptions(threads=1))
        except LoadFailed as error:
            figures.say(f"  {name}: no {each} in OpenVINO: {error.message}")
            continue
        tensors = [from_array(feeds[spec.name], spec.name) for spec in session.inputs]
        found[f"{each} openvino"] = lambda session=session, tensors=tensors: session.run(tensors)  # type: ignore[misc]
    return found


def bench(name: str, rounds: int, figures: Figures) -> None:
    source = read_model_bytes(make_models.MODELS[name]().SerializeToString())
    samples = read_samples(draw(name, source.inputs), source.inputs)
    material = Material(samples, MeasuredRanges(samples))
    prepared = PASSES["preprocess"]().apply(source.proto, Material((), MeasuredRanges(())))
    data: dict[str, bytes] = {"float": source.data}
    for each in NETWORKS[name]:
        began = time.perf_counter()
        step = PASSES[each]()
        reason = step.requires(prepared)
        if reason:
            figures.say(f"  {name}: no {each}: {reason}")
            continue
        made: onnx.ModelProto = step.apply(prepared, material)
        data[each] = made.SerializeToString()
        figures.say(f"  {name}: {each} made in {time.perf_counter() - began:.1f} s")
    feeds = dict(samples[0])
    runs = {each: runner(content, feeds) for each, content in data.items()}
    if has_openvino():
        runs.update(openvino_runners(name, data, feeds, figures))

    def work(each: str) -> float:
        began = time.perf_counter()
        runs[each]()
        return time.perf_counter() - began

    for each in runs:
        work(each)  # the first run allocates
    for sample in interleave(rounds, [(each, lambda each=each: work(each)) for each in runs]):  # type: ignore[misc]
        found = {"float ms": 1e3 * sample["float"]}
        found.update({f"{each} speed": sample["float"] / sample[each] for each in sample if each != "float"})
        figures.add(name, found)
    figures.add(name, {f"{each} size": len(data["float"]) / len(data[each]) for each in data if each != "float"})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=sorted(NETWORKS), help="just this network; may be repeated")
    parser.add_argument("--rounds", type=int, default=21, metavar="N", help="of one run of each variant")
    parser.add_argument("--json", action="store_true", help="the figures as JSON on standard output")
    options = parser.parse_args()
    flags = Path("/proc/cpuinfo").read_text()
    has_vnni = "avx512_vnni" in flags or "avx_vnni" in flags
    targets = [*(TARGETS if has_vnni else []), *(AMX_TARGETS if "amx_int8" in flags else [])]
    figures = Figures(targets, lambda line: print(line, file=sys.stderr, flush=True))
    if not has_vnni:
        figures.say("this processor has no VNNI: no targets apply")
    if not has_openvino():
        figures.say("OpenVINO is NOT installed (the extra infermesh[openvino]): its figures are skipped")
    elif "amx_int8" not in flags:
        figures.say("this processor has no AMX: OpenVINO has no target")
    for name in options.only or NETWORKS:
        bench(name, options.rounds, figures)
    found = figures.all()
    if options.json:
        print(json.dumps([figure.document() for figure in found], indent=2))
        return 0
    for row in [("FIGURE", "MEDIAN", "SPREAD", "ROUNDS", "TARGET", ""), *(figure.cells() for figure in found)]:
        print(f"{row[0]:40} {row[1]:>9}  {row[2]:22} {row[3]:>6}  {row[4]:8} {row[5]}".rstrip())
    judged = [figure for figure in found if figure.holds is not None]
    print(f"{sum(bool(figure.holds) for figure in judged)} of {len(judged)} targets hold in {options.rounds} rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
