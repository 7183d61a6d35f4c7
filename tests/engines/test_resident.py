"""Resident growth: what counts as the model's own, and what loaded models and their runs really take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mesh.arrays import from_array
from mesh.engines.child import MEASURED_RUNS
from mesh.engines.child_process import ChildEngine
from mesh.engines.contract import LoadOptions
from mesh.engines.profile_child import measure_peak
from mesh.engines.resident import STATUS, ResidentGrowth, read_resident

MIB = 1 << 20


def write(status: Path, peak: int, anonymous: int, file: int, shared: int) -> None:
    status.write_text(
        f"Name:\tpython3\nVmHWM:\t{peak} kB\nRssAnon:\t{anonymous} kB\nRssFile:\t{file} kB\nRssShmem:\t{shared} kB\n"
    )


def test_libraries_and_shared_regions_do_not_count_and_a_peak_between_two_looks_does(tmp_path: Path) -> None:
    status = tmp_path / "status"
    write(status, peak=150, anonymous=100, file=50, shared=0)
    growth = ResidentGrowth(status)
    assert (tmp_path / "clear_refs").read_text() == "5"
    write(status, peak=200, anonymous=100, file=80, shared=20)
    assert growth.look() == 0
    write(status, peak=430, anonymous=120, file=80, shared=20)
    assert growth.look() == 230 << 10
    write(status, peak=430, anonymous=120, file=180, shared=20)
    assert growth.look() == 230 << 10


@pytest.mark.parametrize("text", [None, "VmHWM:\t100 kB\nVmRSS:\t90 kB\n"])
def test_where_the_system_does_not_tell_nothing_is_known(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "status").write_text(text)
    assert read_resident(tmp_path / "status") == {} and ResidentGrowth(tmp_path / "status").look() == 0


def product(columns: int) -> bytes:
    """A matrix of `columns` KiB that is multiplied with; such weights are kept packed as well."""
    matrix = numpy_helper.from_array(np.ones((256, columns), np.float32), "matrix")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "matrix"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [matrix],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.mark.skipif(not read_resident(STATUS), reason="the system does not tell what is resident")
def test_an_engine_tells_what_its_model_took_after_a_few_runs(tmp_path: Path) -> None:
    peaks = []
    for mebibytes in (1, 33):
        model = tmp_path / f"{mebibytes}"
        model.write_bytes(product(mebibytes << 10))
        session = ChildEngine().load(model, LoadOptions())
        told = []
        for _ in range(MEASURED_RUNS + 1):
            session.run([from_array(np.ones((1, 256), np.float32))])
            told.append(session.peak_bytes)
        session.close()
        assert told[: MEASURED_RUNS - 1] == [0] * (MEASURED_RUNS - 1) and told[-1] == told[-2] > 0
        forked = measure_peak(model, LoadOptions())
        assert forked == pytest.approx(told[-1], rel=0.25, abs=8 * MIB)
        peaks.append(told[-1])
    small, large = peaks
    assert 32 * MIB < large - small < 6 * 32 * MIB


def test_a_model_that_does_not_load_has_no_peak(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"broken")
    assert measure_peak(tmp_path / "broken", LoadOptions()) == 0
