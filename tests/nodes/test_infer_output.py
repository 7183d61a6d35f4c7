"""`mesh infer --output` replaces files, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mesh.core.tensor import DType, TensorSpec
from mesh.errors import StorageError, TensorMismatch
from nodes.sensor import split_frames, write_npz

SPECS = (TensorSpec("x", DType.FLOAT32, ("batch", 3)),)


def test_replaces_a_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    path.write_bytes(b"old")
    write_npz(path, {"y": np.arange(3)})
    with np.load(path) as archive:
        assert archive["y"].tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", [Path("/dev/null"), Path("/tmp")])
def test_never_replaces_a_device_or_a_folder(path: Path) -> None:
    mode = path.stat().st_mode
    with pytest.raises(StorageError):
        write_npz(path, {"y": np.arange(3)})
    assert path.stat().st_mode == mode


def test_one_axis_more_is_frames_and_equal_rank_is_one_batch() -> None:
    frames, has_frame_axis = split_frames({"x": np.zeros((5, 1, 3), np.float32)}, SPECS)
    assert (len(frames), has_frame_axis) == (5, True)
    frames, has_frame_axis = split_frames({"x": np.zeros((5, 3), np.float32)}, SPECS)
    assert (len(frames), has_frame_axis) == (1, False)


def test_a_missing_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(TensorMismatch, match="'z'"):
        split_frames({"z": np.zeros(3)}, SPECS)
