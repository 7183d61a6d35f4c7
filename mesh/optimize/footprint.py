"""Load time and peak memory of a model, in a process of its own: in this one, the memory of others would count.

Run as `python -m mesh.optimize.footprint`, it is that process: a model and the arrays of one run on standard input,
one JSON object on standard output.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mesh.errors import EngineDied
from mesh.optimize.contract import Feeds

LIMIT_S = 300.0
"""For loading and running once. What takes longer hangs."""

RUNS = 3
"""The arena grows to its size in the first; later ones show that it stays."""

_PACKAGE_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Footprint:
    load_ms: float
    peak_memory_bytes: int
    """Above what Python and the imported runtime take."""


def measure_footprint(data: bytes, feeds: Feeds) -> Footprint:
    """Raises `EngineDied` where the process does not come to its end."""
    packed = io.BytesIO()
    np.savez(packed, **{f"in_{index}": array for index, array in enumerate(feeds.values())})  # type: ignore[arg-type]
    header = json.dumps({"model": len(data), "names": list(feeds)}).encode() + b"\n"
    path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mesh.optimize.footprint"],
            input=header + data + packed.getvalue(),
            capture_output=True,
            timeout=LIMIT_S,
            env={**os.environ, "PYTHONPATH": path},
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise EngineDied(f"the process that measures memory did not end within {LIMIT_S:g} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode(errors="replace").strip().splitlines() or ["no words"])[-1]
        raise EngineDied(f"the process that measures memory ended with {error.returncode}: {last[:300]}") from None
    found = json.loads(done.stdout)
    return Footprint(found["load_ms"], found["peak_memory_bytes"])


def main() -> None:
    from mesh.optimize.running import open_session

    header = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read(header["model"])
    arrays = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    feeds = {name: arrays[f"in_{index}"] for index, name in enumerate(header["names"])}
    before = _status_bytes("VmRSS")
    began = time.perf_counter()
    session = open_session(data, optimised=True, threads=1)
    load_ms = 1e3 * (time.perf_counter() - began)
    for _ in range(RUNS):
        session.run(None, feeds)
    peak = max(0, _status_bytes("VmHWM") - before)
    sys.stdout.write(json.dumps({"load_ms": load_ms, "peak_memory_bytes": peak}) + "\n")


def _status_bytes(field: str) -> int:
    """VmHWM begins anew with each program; `getrusage` would tell the peak of the process that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
