"""What travels with the variants, so that each can be judged again wherever it is to run: some of the samples that
judged them, the float model's answers with optimisation off, and the labels. One file of the folder. Pure.

The same variant may be right on one processor and wrong on another: sums of products of 8-bit numbers overflow 16 bits
on x86 processors without VNNI. No figure that was taken elsewhere tells.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mesh.arrays import Array
from mesh.errors import MeshError, UsageError
from mesh.optimize.verdict import Golden, make_golden

GOLDEN_FILE = "golden.npz"

MAX_GOLDEN_SAMPLES = 256
"""One answer of them is 0.4 points: finer than what devices may differ by."""

MAX_GOLDEN_BYTES = 64 << 20
"""Of samples and answers: what a folder of variants may weigh besides them, and what goes to each device once."""

_FORMAT = 1


@dataclass(frozen=True)
class GoldenSet:
    samples: tuple[dict[str, Array], ...]
    """Runs of the model."""
    golden: Golden


def take_golden_set(samples: Sequence[Mapping[str, Array]], golden: Golden) -> GoldenSet:
    """As many of the judging runs, from the first, as the file may hold; one at the least."""
    taken: list[dict[str, Array]] = []
    room = MAX_GOLDEN_BYTES
    for row in range(min(len(samples), MAX_GOLDEN_SAMPLES)):
        feeds = dict(samples[row])
        room -= sum(array.nbytes for array in (*feeds.values(), *golden.answers[row]))
        if taken and room < 0:
            break
        taken.append(feeds)
    labels = None if golden.labels is None else golden.labels[: len(taken)]
    return GoldenSet(tuple(taken), Golden(golden.answers[: len(taken)], labels, golden.classes))


def encode_golden_set(taken: GoldenSet) -> bytes:
    arrays: dict[str, Array] = {"format": np.array(_FORMAT), "count": np.array(len(taken.samples))}
    arrays["inputs"] = np.array(list(taken.samples[0]))
    if taken.golden.labels is not None:
        arrays["labels"] = taken.golden.labels
    for row, (feeds, outputs) in enumerate(zip(taken.samples, taken.golden.answers, strict=True)):
        arrays |= {f"{row}.in.{position}": array for position, array in enumerate(feeds.values())}
        arrays |= {f"{row}.out.{position}": array for position, array in enumerate(outputs)}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    return packed.getvalue()


def decode_golden_set(data: bytes) -> GoldenSet:
    """Raises `UsageError` for bytes that `encode_golden_set` does not write."""
    try:
        return _decode(data)
    except (ValueError, TypeError, KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile, MeshError) as error:
        raise UsageError(
            f"{GOLDEN_FILE} is damaged or of another version: {str(error)[:200]}",
            hint="make the folder again with `mesh optimize`",
        ) from None


def _decode(data: bytes) -> GoldenSet:
    archive = np.load(io.BytesIO(data), allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise ValueError("it is a lone array")
    unpacked = sum(member.file_size for member in archive.zip.infolist())
    if unpacked > 2 * MAX_GOLDEN_BYTES:  # a single sample may be larger than what several may be together
        raise ValueError(f"it unpacks to {unpacked} bytes")
    if int(archive["format"]) != _FORMAT:
        raise ValueError(f"format {int(archive['format'])}")
    count, names = int(archive["count"]), [str(name) for name in archive["inputs"].reshape(-1)]
    if not 0 < count <= MAX_GOLDEN_SAMPLES:
        raise ValueError(f"{count} samples")
    samples = tuple({name: archive[f"{row}.in.{i}"] for i, name in enumerate(names)} for row in range(count))
    outputs = sum(member.startswith("0.out.") for member in archive.files)
    answers = [[archive[f"{row}.out.{i}"] for i in range(outputs)] for row in range(count)]
    if not outputs:
        raise ValueError("no answers")
    labels = archive["labels"] if "labels" in archive.files else None
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
        raise ValueError(f"labels are {labels.dtype}{list(labels.shape)}")
    return GoldenSet(samples, make_golden(answers, labels, range(count)))
