"""`images:FOLDER` (or one image file): pictures in order of their names. Needs `infermesh[images]`.

Options: `resize=1` scales to the model's size (else a picture of another size is refused), `scale=255|1` divides the
8-bit values (255 for float models unless given), then `mean` and `std` (one number, or one per channel) normalise:
(value / scale - mean) / std. `layout=nchw|nhwc` where the model's shape does not tell. Channels: 3 is RGB, 1 is grey.

Frames are made by lookup tables over bytes, so that numpy is not needed. Only well-known formats are opened, within a
pixel limit that is checked before anything is unpacked; a picture's orientation tag is obeyed.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mesh.client.resource_url import ResourceUrl
from mesh.client.sources.contract import IteratorSource, Source, SourceFrame, SourceRequest, single_input
from mesh.client.values import ByteLookup
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.errors import MissingExtra, NotFound, SourceUnreadable, TensorMismatch, UsageError

OPTIONS = ("resize", "scale", "mean", "std", "layout")
HELP = (
    "images:FOLDER[?resize=1&scale=255|1&mean=A[,B,C]&std=A[,B,C]&layout=nchw|nhwc]\n"
    "    pictures in order of their names"
)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Decoders that may be used: what cameras write. Others, some of which start programs, are never tried."""

MAX_PIXELS = 64_000_000
"""Above the largest common camera sensor; 192 MB once unpacked. Stops files that unpack to far more than they are."""

_CHANNELS = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """The model's picture: `height` and `width` are None where it takes any. `batched` adds a leading 1."""

    channels: int
    height: int | None
    width: int | None
    planes: bool
    """Channel by channel ([C,H,W]); False is pixel by pixel ([H,W,C])."""
    rank: int

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        if self.rank == 2:
            return height, width
        inner = (self.channels, height, width) if self.planes else (height, width, self.channels)
        return (1, *inner) if self.rank == 4 else inner


def open_images(request: SourceRequest) -> Source:
    """A source of pictures; raises `MissingExtra`, `NotFound`, `UsageError` or `TensorMismatch` when opened.

    A picture that is broken, too large or of another size shows up in the iteration, named.
    """
    encoder = PictureEncoder(request.url, single_input(request, "a folder of images"))
    paths = _list_images(request.url.file)

    def produce() -> Generator[SourceFrame, None, None]:
        for path in paths:
            yield SourceFrame((encoder.encode(path, str(path)),), path.name)

    return IteratorSource(produce, frame_count=len(paths))


class PictureEncoder:
    """Picture files to tensors for one input, as the options of `url` say."""

    def __init__(self, url: ResourceUrl, spec: TensorSpec) -> None:
        """Raises `MissingExtra`, `UsageError` or `TensorMismatch`."""
        _import_pillow()
        self._spec = spec
        self._layout = plan_image_layout(url, spec)
        self._lookups = _plan_lookups(url, spec, self._layout.channels)
        self._resize = url.flag("resize")
        if self._resize and (self._layout.height is None or self._layout.width is None):
            raise UsageError(
                f"{url.text!r}: the model takes pictures of any size ({spec}), so there is no size to scale to",
                hint="leave ?resize=1 away",
            )

    def encode(self, file: Path | BinaryIO, name: str) -> Tensor:
        """Raises `SourceUnreadable` or `TensorMismatch`, with `name` for people."""
        pixels, height, width = _read_pixels(file, name, self._layout, self._resize)
        packed = _encode(pixels, self._layout, self._lookups)
        return Tensor.from_bytes(self._spec.dtype, self._layout.shape(height, width), packed, self._spec.name)


def _import_pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtra(
            "reading images needs pillow",
            hint="install the extra infermesh[images]: pip install '.[images]' in a clone",
        ) from error
    return Image, ImageOps


def _list_images(path: Path) -> list[Path]:
    try:
        if path.is_file():
            return [path]
        if not path.exists():
            raise NotFound(f"{path}: there is no such folder", hint="name a folder of pictures, or one picture")
        found = sorted(
            (entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES), key=lambda entry: entry.name
        )
    except OSError as error:
        raise SourceUnreadable(f"{path}: cannot be listed: {error.strerror or error}") from error
    if not found:
        raise NotFound(f"{path}: holds no pictures", hint="known endings: " + ", ".join(sorted(SUFFIXES)))
    return found


def plan_image_layout(url: ResourceUrl, spec: TensorSpec) -> ImageLayout:
    """Tell channels, height and width of the input apart; raises `TensorMismatch`, or `UsageError` where both fit."""
    shape = spec.shape
    refusal = TensorMismatch(
        f"input {spec.name!r}: the model wants {spec}, no picture ([N,C,H,W] or [N,H,W,C], 1 or 3 channels)",
        hint="prepare the arrays yourself and use an .npz file",
    )
    if spec.dtype is DType.STRING or shape is None or len(shape) not in (2, 3, 4):
        raise refusal
    if len(shape) == 4 and shape[0] != 1 and not isinstance(shape[0], str):
        raise TensorMismatch(
            f"input {spec.name!r}: the model wants batches of {shape[0]} ({spec}), a frame is one picture",
            hint="stack the pictures yourself and use an .npz file",
        )
    inner = shape[1:] if len(shape) == 4 else shape
    if len(inner) == 2:
        return ImageLayout(1, *_sizes(inner), planes=True, rank=2)
    asked = url.choice("layout", ("", "nchw", "nhwc"), "")
    planes, pixels = (isinstance(dim, str) or dim in _CHANNELS for dim in (inner[0], inner[2]))
    if asked:
        planes, pixels = planes and asked == "nchw", pixels and asked == "nhwc"
    elif planes and pixels:
        # A fixed channel count tells more than a symbolic one.
        planes, pixels = isinstance(inner[0], int), isinstance(inner[2], int)
    if planes == pixels:
        if not planes and (asked or all(isinstance(dim, int) for dim in inner)):
            raise refusal
        raise UsageError(
            f"{url.text!r}: {spec} may be planes or pixels", hint="say which: ?layout=nchw or ?layout=nhwc"
        )
    channel, sizes = (inner[0], inner[1:]) if planes else (inner[2], inner[:2])
    return ImageLayout(channel if isinstance(channel, int) else 3, *_sizes(sizes), planes=planes, rank=len(shape))


def _sizes(dims: tuple[int | str, ...]) -> tuple[int | None, int | None]:
    height, width = (dim if isinstance(dim, int) else None for dim in dims)
    return height, width


def _plan_lookups(url: ResourceUrl, spec: TensorSpec, channels: int) -> list[ByteLookup] | None:
    """One table per channel; None where the bytes stay as they are."""
    scale = url.number("scale", 255.0 if spec.dtype.is_float else 1.0) or 1.0
    mean = _per_channel(url, "mean", channels, 0.0)
    std = _per_channel(url, "std", channels, 1.0)
    if any(value == 0 for value in std):
        raise url.wrong("std", "not 0")
    if not spec.dtype.is_float:
        if spec.dtype not in (DType.UINT8, DType.UINT16, DType.INT16, DType.INT32, DType.INT64, DType.UINT32):
            raise TensorMismatch(f"input {spec.name!r}: pixels of 0..255 are no {spec.dtype.label}")
        if scale != 1.0 or any(mean) or any(value != 1.0 for value in std):
            raise TensorMismatch(
                f"input {spec.name!r}: the model wants {spec.dtype.label}, scaled pixels are floats",
                hint="leave ?scale=, ?mean= and ?std= away",
            )
    if spec.dtype is DType.UINT8:
        return None
    return [
        ByteLookup([(value / scale - mean[channel]) / std[channel] for value in range(256)], spec.dtype)
        for channel in range(channels)
    ]


def _per_channel(url: ResourceUrl, key: str, channels: int, default: float) -> tuple[float, ...]:
    values = url.numbers(key)
    if values is None:
        return (default,) * channels
    if len(values) not in (1, channels):
        raise url.wrong(key, f"one number, or {channels} separated by commas")
    return values * channels if len(values) == 1 else values


def _read_pixels(file: Path | BinaryIO, name: str, layout: ImageLayout, resize: bool) -> tuple[bytes, int, int]:
    """Interleaved 8-bit pixels, height, width."""
    image_module, operations = _import_pillow()
    bombs = (image_module.DecompressionBombError, image_module.DecompressionBombWarning)
    try:
        with image_module.open(file, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise SourceUnreadable(f"{name}: {width} x {height} pixels are above the limit of {MAX_PIXELS}")
            image = operations.exif_transpose(opened).convert(_CHANNELS[layout.channels])
    except bombs as error:
        raise SourceUnreadable(f"{name}: unpacks to more than {MAX_PIXELS} pixels") from error
    except image_module.UnidentifiedImageError as error:
        raise SourceUnreadable(f"{name}: not a picture of a known format") from error
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError) as error:
        raise SourceUnreadable(f"{name}: broken picture: {error}", hint="remove it or copy it again") from error
    want = (layout.width or image.width, layout.height or image.height)
    if image.size != want:
        if not resize:
            raise TensorMismatch(
                f"{name}: is {image.width} x {image.height} pixels, the model wants {want[0]} x {want[1]}",
                hint="add ?resize=1 to scale pictures",
            )
        image = image.resize(want, image_module.Resampling.BILINEAR)
    pixels: bytes = image.tobytes()
    return pixels, image.height, image.width


def _encode(pixels: bytes, layout: ImageLayout, lookups: list[ByteLookup] | None) -> bytes | bytearray:
    if layout.channels == 1:
        return pixels if lookups is None else lookups[0].apply(pixels)
    if not layout.planes and lookups is None:
        return pixels
    planes = [pixels[channel :: layout.channels] for channel in range(layout.channels)]
    if layout.planes:
        if lookups is None:
            return b"".join(planes)
        return b"".join(lookup.apply(plane) for lookup, plane in zip(lookups, planes, strict=True))
    return _interleave(
        [lookup.apply(plane) for lookup, plane in zip(lookups or [], planes, strict=True)], len(planes[0])
    )


def _interleave(planes: list[bytes | bytearray], count: int) -> bytearray:
    """Elements of equal-sized planes in turn, pixel by pixel."""
    item_bytes = len(planes[0]) // count if count else 0
    stride = item_bytes * len(planes)
    packed = bytearray(stride * count)
    for channel, plane in enumerate(planes):
        for byte in range(item_bytes):
            packed[channel * item_bytes + byte :: stride] = plane[byte::item_bytes]
    return packed
