"""onnxruntime's quantiser behind two functions: its files in a temporary folder, its logging silenced, its errors ours.

`MeasuredRanges` runs calibration one sample at a time and keeps two numbers per tensor, so its memory does not
grow with the number of samples. Called by the passes. Source: onnxruntime.quantization.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

from mesh.optimize.contract import Feeds, PassFailed

RUNS_PER_MERGE = 8
"""Runs whose smallest and largest values wait to be merged. The calibrator's own `CalibMaxIntermediateOutputs` is no
way to bound them: it drops full batches before they are merged."""


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextlib.contextmanager
def quantiser_calls(what: str) -> Iterator[Path]:
    """A folder for the quantiser's files; what it raises becomes `PassFailed`, except for `OSError` of the disk."""
    # Its calls of `logging.warning` would install a handler for the whole process where there is none.
    handler, root = logging.NullHandler(), logging.getLogger()
    disabled = root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory(prefix="infermesh-") as folder:
            yield Path(folder)
    except (OSError, MemoryError, PassFailed):
        raise
    except Exception as error:  # its own, protobuf's, numpy's and the runtime's share no base but this
        raise PassFailed(f"{what} failed: {first_line(error)}") from error
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)


class _Reader:
    """onnxruntime's CalibrationDataReader over samples."""

    def __init__(self, samples: Sequence[Feeds]) -> None:
        self._rest = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        sample = next(self._rest, None)
        return None if sample is None else dict(sample)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(sample) for sample in self._rest)


class MeasuredRanges:
    """Implements `contract.Ranges` by running the model; owns the ranges of the last model."""

    def __init__(self, samples: Sequence[Feeds]) -> None:
        self._samples = samples
        self._model: onnx.ModelProto | None = None
        self._ranges: Any = None

    def of(self, model: onnx.ModelProto) -> Any:
        if self._model is not model:
            self._ranges = self._measure(model)
            self._model = model
        return self._ranges

    def _measure(self, model: onnx.ModelProto) -> Any:
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

        with quantiser_calls("calibration") as folder:
            source = folder / "float.onnx"
            source.write_bytes(model.SerializeToString())
            calibrator = create_calibrator(
                source,
                None,
                augmented_model_path=str(folder / "augmented.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
            )
            for start in range(0, len(self._samples), RUNS_PER_MERGE):
                calibrator.collect_data(_Reader(self._samples[start : start + RUNS_PER_MERGE]))
            return calibrator.compute_data()


def quantise_static(
    model: onnx.ModelProto, ranges: Any, *, seven_bit: bool, keep_float: frozenset[str]
) -> onnx.ModelProto:
    """QDQ, unsigned activations and signed weights, one scale per output channel.

    Signed activations, onnxruntime's default, leave residual networks half in float on x86 (measured).
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Softmax costs little in float, and its answers would be rounded to 1/256.
    types = sorted({*QDQRegistry, *QLinearOpsRegistry} - {"Softmax"})
    with quantiser_calls("quantisation"):
        quantiser = QDQQuantizer(
            copy,
            True,
            seven_bit,
            QuantType.QInt8,
            QuantType.QUInt8,
            ranges,
            [],
            sorted(keep_float),
            types,
            {"MatMulConstBOnly": True},
        )
        quantiser.quantize_model()
        return _copied(quantiser.model.model)


def quantise_dynamic(model: onnx.ModelProto, types: Sequence[str], keep_float: frozenset[str]) -> onnx.ModelProto:
    """Weights as signed int8 (unsigned ones run no faster than float: measured), activations quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quantiser_calls("quantisation") as folder:
        source, target = folder / "float.onnx", folder / "int8.onnx"
        source.write_bytes(model.SerializeToString())
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(types),
            per_channel=False,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=sorted(keep_float),
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(target)


def _copied(model: Any) -> onnx.ModelProto:
    """Through its bytes, which frees what the quantiser's object holds."""
    return onnx.load_model_from_string(model.SerializeToString())
