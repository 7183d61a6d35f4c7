"""The backend cases of the onnx package: models, inputs, expected outputs and the tolerance that each case has.

All kinds are here: the operator cases, small hand-written models, models exported by PyTorch, and the light
versions of published networks. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@dataclass(frozen=True)
class DataSet:
    inputs: dict[str, Any]
    outputs: list[Any]


@dataclass(frozen=True)
class Case:
    name: str
    """"kind/test_name"; a test name may occur in two kinds."""
    rtol: float
    atol: float
    source: TestCase = field(repr=False)

    def load(self) -> tuple[bytes, list[DataSet]]:
        """The model, and at least one set of named inputs with the outputs in the model's order."""
        source = self.source
        if source.model is not None:
            model = source.model
            sets = [([_to_value(v) for v in i], [_to_value(v) for v in o]) for i, o in source.data_sets or ()]
            data = model.SerializeToString()
        else:
            path = LIGHT / Path(source.url).name if source.url else Path(str(source.model_dir)) / "model.onnx"
            data = path.read_bytes()
            model = onnx.ModelProto.FromString(data)
            sets = [_make_light_set(model, path)] if source.url else _read_sets(model, path.parent)
        stored = {tensor.name for tensor in model.graph.initializer} if source.url else set()
        names = [value.name for value in model.graph.input if value.name not in stored]
        return data, [DataSet(dict(zip(names, i, strict=False)), o) for i, o in sets]

    def compare(self, expected: Sequence[Any], made: Sequence[Any]) -> str:
        """Why `made` is not as expected (number, element type, shape, values); empty if it is."""
        try:
            Runner.assert_similar_outputs(expected, made, self.rtol, self.atol)
        except (AssertionError, TypeError, AttributeError) as error:
            return " ".join(str(error).split())[:300] or type(error).__name__
        return ""


def load_cases(only: str = "", kinds: Iterable[str] = KINDS) -> list[Case]:
    """All cases whose name `only` is found in, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the expected values overflows and divides by zero, on purpose
        found = [(kind, case) for kind in kinds for case in load_model_tests(kind=kind)]
    cases = [Case(f"{kind}/{case.name}", case.rtol, case.atol, case) for kind, case in found]
    return sorted((case for case in cases if re.search(only, case.name)), key=lambda case: case.name)


def sample(cases: Sequence[Case], count: int) -> list[Case]:
    """Always the same `count` cases, spread over all kinds of operators: the first by the hash of their names."""
    by_hash = sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).digest())
    return sorted(by_hash[:count], key=lambda case: case.name)


def _to_value(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value  # scalars of some cases


def _read_sets(model: onnx.ModelProto, folder: Path) -> list[tuple[list[Any], list[Any]]]:
    sets = []
    for each in sorted(folder.glob("test_data_set_*")):
        inputs = _read_values(each, "input", model.graph.input)
        sets.append((inputs, _read_values(each, "output", model.graph.output)))
    return sets


def _read_values(folder: Path, role: str, values: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    found = []
    for index in range(len(list(folder.glob(f"{role}_*.pb")))):
        data = (folder / f"{role}_{index}.pb").read_bytes()
        kind = values[index].type.WhichOneof("value")
        if kind == "sequence_type":
            found.append(numpy_helper.to_list(onnx.SequenceProto.FromString(data)))
        elif kind == "optional_type":
            found.append(numpy_helper.to_optional(onnx.OptionalProto.FromString(data)))
        else:
            found.append(numpy_helper.to_array(onnx.TensorProto.FromString(data)))
    return found


def _make_light_set(model: onnx.ModelProto, path: Path) -> tuple[list[Any], list[Any]]:
    """What the onnx package's own runner gives these networks; the expected outputs lie beside them."""
    stored = {tensor.name for tensor in model.graph.initializer}
    free = [value for value in model.graph.input if value.name not in stored]
    inputs = [Runner.generate_dummy_data(value) for value in free]
    files = [path.with_name(f"{path.stem}_output_{index}.pb") for index in range(len(model.graph.output))]
    return inputs, [numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]
