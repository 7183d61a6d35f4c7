"""The child process that profiles a model: which kernels take how long, and parts of the model against the whole.

Started by `mesh.engines.profile_process` and apart from the daemon, because a model under ONNX Runtime's profiler
takes memory and may crash. It reads one JSON object from standard input (`whole`, `parts`: files; `threads`,
`providers`, `budget_seconds`, `parent`) and prints one JSON object: `kernels`, `part_ratios`, `peak_bytes` (of the
whole and of each part), or `error`.

A part and the whole are run in turns, and only the ratio of two neighbouring runs counts: a machine whose pace drifts
is slower for both. With one thread their processor time is compared, so that neither a quota nor other work, which
stop the process in the midst of a run, is taken for the part's own time. Sources:
https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mesh.core.tensor import blank_tensor
from mesh.engines.child import MEASURED_RUNS, die_with_parent, expect_trouble
from mesh.engines.contract import LoadOptions, Session
from mesh.engines.onnx_runtime import OnnxRuntimeEngine, import_runtime
from mesh.engines.resident import ResidentGrowth

MIN_TURNS = 5
MAX_TURNS = 200
MIN_PROFILED_RUNS = 5
MAX_PROFILED_RUNS = 30
"""Each writes some hundred bytes per kernel to a file for temporary ones."""

KERNEL_QUANTILE = 0.25
"""Of a kernel's runs: what disturbs a run only makes it longer. Under a quota the mean would tell where in the model
the process happened to be stopped."""

_PEAK = struct.Struct("<Q")

KERNEL_SUFFIX = "_kernel_time"
MAX_KERNELS = 100_000


def main() -> int:
    asked = json.load(sys.stdin)
    die_with_parent(asked["parent"])
    expect_trouble()
    try:
        answer = profile(asked)
    except Exception as error:  # whatever it is, it is the answer, and this process is only for this
        answer = {"error": " ".join(str(error).split())[:1000] or type(error).__name__}
    json.dump(answer, sys.stdout)
    return 0


def profile(asked: Mapping[str, Any]) -> dict[str, Any]:
    options = LoadOptions(tuple(asked["providers"]), asked["threads"])
    whole, parts = Path(asked["whole"]), [Path(part) for part in asked["parts"]]
    share_s = asked["budget_seconds"] / (len(parts) + 1)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    import_runtime()  # before the memory is measured: every engine has that, and so have those who fork
    peaks = [measure_peak(model, options) for model in (whole, *parts)]
    first = _Timed(OnnxRuntimeEngine().load(whole, options), clock)
    ratios = [
        compare_times(_Timed(OnnxRuntimeEngine().load(part, options), clock).run, first.run, share_s) for part in parts
    ]
    del first  # its memory is needed for the next one
    kernels = _time_kernels(whole, options, share_s)
    return {"kernels": kernels, "part_ratios": ratios, "peak_bytes": peaks}


def measure_peak(model: Path, options: LoadOptions) -> int:
    """Resident growth by loading `model` and a few runs, in a process of its own: what an earlier model left free
    would hide what this one takes. 0 where that process fails or the system does not tell.

    To be called before this process has a session: threads do not survive a fork.
    """
    receiving, sending = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            die_with_parent(parent)
            growth = ResidentGrowth()
            session = OnnxRuntimeEngine().load(model, options)
            growth.look()
            feeds = [blank_tensor(spec) for spec in session.inputs]
            for _ in range(MEASURED_RUNS):
                session.run(feeds)
            os.write(sending, _PEAK.pack(growth.look()))
        finally:
            os._exit(0)  # whatever happened: what comes after belongs to the parent
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return _PEAK.unpack(told)[0] if len(told) == _PEAK.size else 0


def compare_times(part: Callable[[], float], whole: Callable[[], float], budget_s: float) -> float:
    """Time of `part` over that of `whole`: the median over pairs of neighbouring runs."""
    ratios: list[float] = []
    began = time.perf_counter()
    while len(ratios) < MIN_TURNS or (len(ratios) < MAX_TURNS and time.perf_counter() - began < budget_s):
        ratios.append(part() / max(whole(), 1e-9))
    return statistics.median(ratios)


class _Timed:
    """A loaded model that is run on blank inputs."""

    def __init__(self, session: Session, clock: Callable[[], float]) -> None:
        self._session = session
        self._clock = clock
        self._feeds = [blank_tensor(spec) for spec in session.inputs]
        session.run(self._feeds)  # the first run allocates

    def run(self) -> float:
        """Seconds."""
        began = self._clock()
        self._session.run(self._feeds)
        return self._clock() - began


def _time_kernels(model: Path, options: LoadOptions, budget_s: float) -> list[tuple[str, float]]:
    """Name and seconds of each kernel in running order."""
    with tempfile.TemporaryDirectory(prefix="mesh-profile-") as folder:
        session = OnnxRuntimeEngine().load(model, options, profile_prefix=str(Path(folder) / "run"))
        feeds = [blank_tensor(spec) for spec in session.inputs]
        runs, began = 0, time.perf_counter()
        while runs < MIN_PROFILED_RUNS or (runs < MAX_PROFILED_RUNS and time.perf_counter() - began < budget_s):
            session.run(feeds)
            runs += 1
        return kernel_times(json.loads(session.end_profiling().read_text()))


def kernel_times(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """From ONNX Runtime's events, in running order; a kernel is told by its name and its place in the graph."""
    runs: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(KERNEL_SUFFIX):
            place = str(event.get("args", {}).get("node_index", ""))
            runs.setdefault((name.removesuffix(KERNEL_SUFFIX), place), []).append(float(event["dur"]) * 1e-6)
    times = [(name, _quantile(seconds, KERNEL_QUANTILE)) for (name, _), seconds in runs.items()]
    return times[:MAX_KERNELS]


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.floor(share * len(values))]


if __name__ == "__main__":
    sys.exit(main())
