"""Which execution providers really compute here. Runs in the probe's child process only.

That ONNX Runtime lists a provider says that it was compiled in, not that the device, its driver or its
libraries are there; and it falls back to the processor silently. So each provider has to compute a small
product with the fallback switched off, and the result is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CPU_PROVIDER = "CPUExecutionProvider"

TRIAL_SIZE = 16
"""Rows of the matrices of a trial: enough to compute something, nothing to wait for."""

TRIAL_TOLERANCE = 2e-2
"""Largest difference to the exact product; accelerators may compute in 10-bit mantissas (TF32, float16)."""

MAX_DETAIL_CHARACTERS = 300
"""Of a reason: it travels with the capabilities and stands in tables."""


def order_providers(names: Sequence[str]) -> list[str]:
    """The CPU first: what comes after it may crash without costing the others' findings."""
    return sorted(names, key=lambda name: (name != CPU_PROVIDER, name))


def make_session(model: bytes, provider: str, threads: int) -> Any:
    """An onnxruntime.InferenceSession on this provider alone; raises what ONNX Runtime raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if provider != CPU_PROVIDER:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return onnxruntime.InferenceSession(model, options, providers=[provider])


def try_provider(name: str, threads: int) -> str:
    """Compute with it once. Returns why it is not usable, or "" if it is."""
    import numpy

    from mesh.hardware.matmul_model import INPUT_NAME, build_matmul_model

    generator = numpy.random.default_rng(1)
    weights = generator.uniform(-1, 1, (TRIAL_SIZE, TRIAL_SIZE)).astype("<f4")
    values = generator.uniform(-1, 1, (TRIAL_SIZE, TRIAL_SIZE)).astype("<f4")
    try:
        session = make_session(build_matmul_model(TRIAL_SIZE, weights.tobytes()), name, threads)
        if name not in session.get_providers():
            return "its libraries or its device are missing"
        result = session.run(None, {INPUT_NAME: values})[0]
    except Exception as error:  # whatever a provider raises is the finding, and the process is only for this
        return " ".join(str(error).split())[:MAX_DETAIL_CHARACTERS] or type(error).__name__
    difference = float(numpy.abs(result - values @ weights).max())
    if not difference <= TRIAL_TOLERANCE:
        return f"it computes wrong results (largest difference {difference:.3g})"
    return ""
