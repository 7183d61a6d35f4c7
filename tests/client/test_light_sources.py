"""Sources and sinks of the base install work where no optional library can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mesh

SCRIPT = """
import io, sys, wave

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"numpy", "onnx", "onnxruntime", "PIL", "cryptography", "rich"}:
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
from mesh.client.sinks import SinkRecord, describe_sinks, open_sink
from mesh.client.sources import describe_sources, open_source
from mesh.core.frame import Outcome
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import MissingExtra

describe_sources(), describe_sinks()
spec = TensorSpec("x", DType.FLOAT32, (1, 8))
with wave.open("a.wav", "wb") as file:
    file.setparams((1, 2, 8000, 0, "NONE", ""))
    file.writeframes(bytes(32))
for url in ("a.wav", "-", "synthetic:imu?count=2", "synthetic:vibration?count=2", "synthetic:random?count=2"):
    sinks = [open_sink("-", [spec]), open_sink("null:", [spec])]
    for sequence, frame in enumerate(open_source(url, [spec], stdin=io.BytesIO(bytes(64))).frames()):
        for sink in sinks:
            sink.write(SinkRecord(sequence, Outcome.OK, frame.tensors, frame.origin, 0.0))
for attempt in (
    lambda: open_source("a.npz", [spec]),
    lambda: open_source("a.npy", [spec]),
    lambda: open_source("images:.", [spec]),
    lambda: open_sink("a.npz", [spec]),
):
    try:
        attempt()
    except MissingExtra as error:
        print(error.hint, file=sys.stderr)
    else:
        sys.exit("a missing library went unnoticed")
"""


def test_the_base_install_is_enough(tmp_path: Path) -> None:
    root = Path(mesh.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10
    assert done.stderr.count("infermesh[numpy]") == 3
    assert done.stderr.count("infermesh[images]") == 1
