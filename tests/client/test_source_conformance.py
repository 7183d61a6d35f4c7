"""What holds for every kind of source; a new kind is added to SAMPLES."""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mesh.client.sources import RateSchedule, Source, describe_sources, open_source
from mesh.client.sources.opening import SOURCES
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import MissingExtra, NotFound, TensorMismatch, UsageError

SPEC = TensorSpec("x", DType.FLOAT32, ("batch", 8))
PICTURE = TensorSpec("x", DType.FLOAT32, ("batch", 3, 2, 2))
FRAMES = 4

Opener = Callable[[Path], Source]


def open_npz(folder: Path) -> Source:
    np.savez(folder / "a.npz", x=np.zeros((FRAMES, 8), np.float32))
    return open_source(str(folder / "a.npz"), [SPEC])


def open_npy(folder: Path) -> Source:
    np.save(folder / "a.npy", np.zeros((FRAMES, 8), np.float32))
    return open_source(str(folder / "a.npy"), [SPEC])


def open_images(folder: Path) -> Source:
    for index in range(FRAMES):
        Image.new("RGB", (2, 2)).save(folder / f"{index}.png")
    return open_source(str(folder), [PICTURE])


def open_wav(folder: Path) -> Source:
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\1\0" * 8 * FRAMES)
    return open_source(str(folder / "a.wav"), [SPEC])


def open_stdin(folder: Path) -> Source:
    return open_source("stdin:", [SPEC], stdin=io.BytesIO(bytes(32 * FRAMES)))


def open_pcm(folder: Path) -> Source:
    return open_source("stdin:?format=pcm_s16le", [SPEC], stdin=io.BytesIO(bytes(16 * FRAMES)))


def open_imu(folder: Path) -> Source:
    return open_source(f"synthetic:imu?count={FRAMES}", [SPEC])


def open_random(folder: Path) -> Source:
    return open_source(f"synthetic:random?count={FRAMES}", [SPEC])


SAMPLES: dict[str, tuple[Opener, ...]] = {
    "npz": (open_npz,),
    "npy": (open_npy,),
    "images": (open_images,),
    "wav": (open_wav,),
    "stdin": (open_stdin, open_pcm),
    "synthetic": (open_imu, open_random),
}


def test_every_kind_of_source_is_held_to_this() -> None:
    assert set(SAMPLES) == set(SOURCES)


@pytest.fixture(params=[opener for openers in SAMPLES.values() for opener in openers], ids=lambda each: each.__name__)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    opened: Source = request.param(tmp_path)
    return opened


def test_every_frame_fits_the_model_and_has_an_origin(source: Source) -> None:
    promised = source.frame_count
    frames = list(source.frames())
    assert len(frames) == FRAMES
    assert promised in (None, FRAMES)
    for frame in frames:
        (tensor,) = frame.tensors
        spec = PICTURE if len(tensor.shape) == 4 else SPEC
        spec.check(tensor.dtype, tensor.shape)
        tensor.check_bytes()
        assert tensor.data.contiguous and tensor.data.format == "B"
    assert len({frame.origin for frame in frames}) == FRAMES


def test_frames_stay_as_they_are_when_later_ones_are_made(source: Source) -> None:
    kept: list[tuple[memoryview, bytes]] = []
    for frame in source.frames():
        kept.append((frame.tensors[0].data, bytes(frame.tensors[0].data)))
    assert all(view == content for view, content in kept)


def test_close_ends_it_at_the_next_frame(source: Source) -> None:
    frames = source.frames()
    assert len(list(islice(frames, 2))) == 2
    source.close()
    source.close()
    assert list(frames) == []


def test_closed_before_it_began_it_gives_nothing(source: Source) -> None:
    source.close()
    assert list(source.frames()) == []


def test_the_frames_can_be_read_once(source: Source) -> None:
    source.frames()
    with pytest.raises(RuntimeError, match="once"):
        source.frames()


def test_a_rate_is_known_or_not(source: Source) -> None:
    rate = source.natural_rate_hz
    assert rate is None or (math.isfinite(rate) and rate > 0)


@pytest.mark.parametrize("scheme", SOURCES)
def test_unknown_options_are_refused_by_name(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown option 'colour'"):
        open_source(f"{scheme}:{tmp_path}/x?colour=red", [SPEC])


@pytest.mark.parametrize("scheme", ["npz", "npy", "images", "wav"])
def test_files_that_are_missing_are_not_found(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_source(f"{scheme}:{tmp_path}/x", [PICTURE if scheme == "images" else SPEC])


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [
        ("a.npz", "numpy", "infermesh[numpy]"),
        ("a.npy", "numpy", "infermesh[numpy]"),
        ("a.png", "PIL", "infermesh[images]"),
    ],
)
def test_a_missing_extra_is_named(url: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(MissingExtra) as refused:
        open_source(url, [SPEC])
    assert f"install the extra {extra}" in refused.value.hint


def test_a_model_without_inputs_is_refused() -> None:
    with pytest.raises(TensorMismatch, match="no inputs"):
        open_source("synthetic:random", [])


def test_the_help_names_every_scheme_or_suffix() -> None:
    text = describe_sources()
    assert all(f"{scheme}:" in text or f".{scheme}" in text for scheme in SOURCES)
    assert all(option in text for kind in SOURCES.values() for option in kind.options)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-320])
def test_rates_that_make_no_sense_are_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="makes no sense"):
        RateSchedule(rate)


def test_due_times_do_not_drift() -> None:
    schedule = RateSchedule(3.0)
    assert schedule.due(0, 100.0) == 100.0
    assert schedule.due(3_000_000, 100.0) == pytest.approx(1_000_100.0, abs=1e-6)
    assert schedule.period_s == pytest.approx(1 / 3)
