from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mesh.client.sources import SourceFrame, images, open_source
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import MeshError, NotFound, SourceUnreadable, TensorMismatch, UsageError

F32, U8 = DType.FLOAT32, DType.UINT8
NCHW = TensorSpec("x", F32, ("batch", 3, 4, 5))
NHWC = TensorSpec("x", F32, (1, 4, 5, 3))
GREY = TensorSpec("x", F32, (1, 1, 4, 5))
PIXELS = np.arange(60, dtype=np.uint8).reshape(4, 5, 3) * 4


def read(url: str | Path, spec: TensorSpec) -> list[SourceFrame]:
    return list(open_source(str(url), [spec]).frames())


def array_of(frame: SourceFrame) -> Any:
    tensor = frame.tensors[0]
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype.label)).reshape(tensor.shape)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(PIXELS).save(folder / "b.png")
    Image.fromarray(PIXELS[::-1]).save(folder / "a.PNG")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_pictures_come_in_order_of_their_names(folder: Path) -> None:
    source = open_source(str(folder), [NCHW])
    assert source.frame_count == 2
    frames = list(source.frames())
    assert [frame.origin for frame in frames] == ["a.PNG", "b.png"]
    assert np.allclose(array_of(frames[1])[0], PIXELS.transpose(2, 0, 1) / 255, atol=1e-7)
    assert np.allclose(array_of(frames[0])[0], PIXELS[::-1].transpose(2, 0, 1) / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (NHWC, PIXELS[None] / np.float32(255)),
        (TensorSpec("x", F32, (3, 4, 5)), PIXELS.transpose(2, 0, 1) / np.float32(255)),
        (TensorSpec("x", F32, (4, 5, 3)), PIXELS / np.float32(255)),
        (TensorSpec("x", F32, (1, "h", "w", 3)), PIXELS[None] / np.float32(255)),
        (TensorSpec("x", F32, (1, 3, "h", "w")), PIXELS.transpose(2, 0, 1)[None] / np.float32(255)),
        (TensorSpec("x", U8, (1, 4, 5, 3)), PIXELS[None]),
        (TensorSpec("x", U8, (1, 3, 4, 5)), PIXELS.transpose(2, 0, 1)[None]),
        (TensorSpec("x", DType.INT64, (1, 3, 4, 5)), PIXELS.transpose(2, 0, 1)[None].astype(np.int64)),
        (TensorSpec("x", DType.FLOAT16, (1, 4, 5, 3)), (PIXELS[None] / 255).astype(np.float16)),
    ],
)
def test_layout_and_type_follow_the_model(folder: Path, spec: TensorSpec, want: Any) -> None:
    got = array_of(read(folder / "b.png", spec)[0])
    assert got.shape == want.shape and got.dtype == want.dtype
    assert np.allclose(got, want, atol=1e-7)


def test_a_layout_that_could_be_both_must_be_said(folder: Path) -> None:
    shapes: list[tuple[int | str, ...]] = [(1, "c", "h", "w"), (1, 3, 4, 3)]
    for shape in shapes:
        with pytest.raises(UsageError, match=r"\?layout=nchw or \?layout=nhwc"):
            open_source(str(folder), [TensorSpec("x", F32, shape)])
    spec = TensorSpec("x", F32, (1, "c", "h", "w"))
    assert array_of(read(f"{folder}?layout=nchw", spec)[0]).shape == (1, 3, 4, 5)
    assert array_of(read(f"{folder}?layout=nhwc", spec)[0]).shape == (1, 4, 5, 3)


def test_grey_models_get_grey(folder: Path) -> None:
    want = np.asarray(Image.fromarray(PIXELS).convert("L")) / np.float32(255)
    shapes: list[tuple[int, ...]] = [(1, 1, 4, 5), (1, 4, 5, 1), (1, 4, 5), (4, 5)]
    for shape in shapes:
        got = array_of(read(folder / "b.png", TensorSpec("x", F32, shape))[0])
        assert np.allclose(got.reshape(4, 5), want, atol=1e-7)


@pytest.mark.parametrize("spec", [NCHW, NHWC])
def test_mean_and_deviation_normalise_each_channel(folder: Path, spec: TensorSpec) -> None:
    (frame,) = read(f"{folder / 'b.png'}?mean=0.1,0.2,0.3&std=0.5,1,2", spec)
    want = (PIXELS / 255 - [0.1, 0.2, 0.3]) / [0.5, 1, 2]
    got = array_of(frame)[0]
    assert np.allclose(got if spec is NHWC else got.transpose(1, 2, 0), want, atol=1e-6)
    (raw,) = read(f"{folder / 'b.png'}?scale=1&mean=2", NHWC)
    assert np.array_equal(array_of(raw)[0], PIXELS.astype(np.float32) - 2)


def test_resize_is_asked_for(folder: Path) -> None:
    spec = TensorSpec("x", F32, (1, 3, 8, 10))
    with pytest.raises(TensorMismatch, match=r"a.PNG: is 5 x 4 pixels, the model wants 10 x 8 .*\?resize=1"):
        read(folder, spec)
    assert array_of(read(f"{folder}?resize=1", spec)[0]).shape == (1, 3, 8, 10)
    with pytest.raises(UsageError, match="no size to scale to"):
        open_source(f"{folder}?resize=1", [TensorSpec("x", F32, (1, 3, "h", "w"))])


def test_the_orientation_of_a_photograph_is_obeyed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=exif)
    assert array_of(read(tmp_path / "a.jpg", TensorSpec("x", F32, (1, 3, "h", "w")))[0]).shape == (1, 3, 5, 4)


def test_palette_and_transparent_pictures_are_converted(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("P").save(tmp_path / "a.gif")
    Image.fromarray(PIXELS).convert("RGBA").save(tmp_path / "b.png")
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(tmp_path / "c.png")
    assert len(read(tmp_path, NCHW)) == 3


def test_broken_pictures_are_named(folder: Path) -> None:
    whole = (folder / "b.png").read_bytes()
    for content in (whole[:-30], b"", b"hello", whole[:20]):
        (folder / "b.png").write_bytes(content)
        frames = open_source(str(folder), [NCHW]).frames()
        next(frames)
        with pytest.raises(SourceUnreadable, match=r"b\.png"):
            next(frames)


def test_pictures_that_unpack_to_too_much_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 19)
    with pytest.raises(SourceUnreadable, match="5 x 4 pixels are above the limit of 19"):
        read(folder, NCHW)
    for pixels in (19, 5):  # Pillow's own guard warns, then refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        with pytest.raises(SourceUnreadable, match="more than 19 pixels"):
            read(folder, NCHW)


def test_formats_that_start_programs_are_not_tried(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EOF\n")
    with pytest.raises(SourceUnreadable, match="not a picture"):
        read(tmp_path, NCHW)


@pytest.mark.parametrize(
    ("query", "spec", "error", "said"),
    [
        ("", TensorSpec("x", F32, (8, 3, 4, 5)), TensorMismatch, "batches of 8"),
        ("", TensorSpec("x", F32, (1, 4, 4, 5)), TensorMismatch, "no picture"),
        ("layout=nhwc", NCHW, TensorMismatch, "no picture"),
        ("", TensorSpec("x", F32, (1, 60, 1, 1, 1)), TensorMismatch, "no picture"),
        ("", TensorSpec("x", F32, None), TensorMismatch, "no picture"),
        ("", TensorSpec("x", DType.INT8, (1, 3, 4, 5)), TensorMismatch, "no int8"),
        ("scale=255", TensorSpec("x", U8, (1, 3, 4, 5)), TensorMismatch, "scaled pixels are floats"),
        ("scale=0", NCHW, UsageError, "scale="),
        ("std=1,0,1", NCHW, UsageError, "std="),
        ("mean=1,2", NCHW, UsageError, "or 3 separated by commas"),
        ("mean=nan", NCHW, UsageError, "mean="),
        ("layout=hwc", NCHW, UsageError, "layout="),
        ("size=3", NCHW, UsageError, "unknown option 'size'"),
    ],
)
def test_what_does_not_fit_is_refused_at_opening(
    folder: Path, query: str, spec: TensorSpec, error: type[MeshError], said: str
) -> None:
    with pytest.raises(error, match=said):
        open_source(f"images:{folder}?{query}", [spec])


def test_no_folder_and_no_pictures_are_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        open_source(f"images:{tmp_path / 'no'}", [NCHW])
    with pytest.raises(NotFound, match="holds no pictures"):
        open_source(str(tmp_path), [NCHW])
