"""How tensors may be written on the wire between two stages: the vocabulary of codecs, without NumPy.

A *codec* is what a plan gives an edge ("int8+zstd"); a *coding* is how one tensor of a frame is written, as its
header says (`Codec` in protos/mesh/v1/stream.proto). An edge's codec allows several codings: what cannot be written
smaller or at all (integers under int8, NaN, a handful of numbers) travels as it is. `mesh.codecs` does the work.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mesh.core.tensor import DType, Tensor

RAW = "raw"
"""The codec that everybody speaks: tensors as they are."""

LOSSLESS = "zstd"
FLOAT16 = "fp16"
INT8 = "int8"
PACKED = "+zstd"
"""Ending of the codecs that compress what another one has made."""

CODECS = (RAW, LOSSLESS, FLOAT16, FLOAT16 + PACKED, INT8, INT8 + PACKED)
"""What the data plane reads and writes, the exact ones first, then by how much they lose. A plan that names another one
is refused at the door; a node refuses what needs a package that it does not have."""


class Coding(enum.IntEnum):
    """The numbers of the wire."""

    RAW = 1
    FLOAT16 = 2
    """float32 rounded to the nearest half, ties away from zero."""
    INT8 = 3
    """float32 as (byte - zero point) * scale."""
    RAW_ZSTD = 4
    """First bytes of all elements, then second bytes and so on, as one Zstandard frame."""
    FLOAT16_ZSTD = 5
    """The same of halves."""
    INT8_ZSTD = 6

    @property
    def is_packed(self) -> bool:
        return self >= Coding.RAW_ZSTD

    def item_bytes(self, dtype: DType) -> int:
        """Per element of a tensor of `dtype`, before packing."""
        return {Coding.FLOAT16: 2, Coding.INT8: 1}.get(self.plain, dtype.item_bytes)

    @property
    def plain(self) -> Coding:
        """What is packed."""
        return Coding(self - 3) if self.is_packed else self


@dataclass(frozen=True, slots=True)
class CodedTensor(Tensor):
    """On the wire only: `dtype` and `shape` are those of the tensor, `data` is what `coding` has made of it."""

    coding: Coding
    scale: float = 0.0
    """Of INT8: the step."""
    zero_point: int = 0
    """Of INT8: the byte that is 0.0; outside of 0 to 255 where no element is near it."""

    @property
    def plain_bytes(self) -> int:
        """Of the tensor itself."""
        return self.element_count * self.dtype.item_bytes


def is_lossy(codec: str) -> bool:
    """Whether answers may change by it."""
    return codec not in (RAW, LOSSLESS)


def is_packed(codec: str) -> bool:
    """Whether it needs Zstandard."""
    return codec == LOSSLESS or codec.endswith(PACKED)


def loss_of(codec: str) -> str:
    """What of `codec` loses: "fp16", "int8"; "" for the exact ones."""
    return codec.removesuffix(PACKED) if is_lossy(codec) else ""


_PLAIN = {
    RAW: {Coding.RAW},
    LOSSLESS: {Coding.RAW},
    FLOAT16: {Coding.RAW, Coding.FLOAT16},
    INT8: {Coding.RAW, Coding.INT8},
}

CODINGS_OF: dict[str, frozenset[Coding]] = {
    codec: frozenset(
        coding
        for coding in Coding
        if coding.plain in _PLAIN[codec.removesuffix(PACKED)] and (is_packed(codec) or not coding.is_packed)
    )
    for codec in CODECS
}
"""The codings that tensors may have on an edge of each codec."""
