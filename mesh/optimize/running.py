"""Sessions of onnxruntime as this package needs them: on the processor, quiet, one thread where times are compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnxruntime

from mesh.arrays import Array
from mesh.errors import ModelInvalid
from mesh.optimize.contract import Feeds, PassFailed
from mesh.optimize.quantiser import first_line

_FATAL = 4


def open_session(data: bytes, *, optimised: bool, threads: int = 0) -> Any:
    """An InferenceSession; 0 threads lets the runtime choose. Raises what the runtime raises."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads would spin on a core that the next session needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def answers_of(data: bytes, samples: Iterable[Feeds], *, optimised: bool) -> list[list[Array]]:
    """The model's outputs for each run. Raises `PassFailed` where the runtime refuses the model or a run."""
    try:
        session = open_session(data, optimised=optimised)
        return [[*session.run(None, dict(feeds))] for feeds in samples]
    except Exception as error:  # the runtime's own classes share no base but this
        raise PassFailed(f"ONNX Runtime refuses it: {first_line(error)}") from error


def reference_answers(data: bytes, samples: Iterable[Feeds]) -> list[list[Array]]:
    """Of the float model with optimisation off: what every variant is judged by. Raises `ModelInvalid`."""
    try:
        return answers_of(data, samples, optimised=False)
    except PassFailed as error:
        raise ModelInvalid(
            f"the float model does not run on the calibration sample: {error}", hint="try it with `mesh verify`"
        ) from None
