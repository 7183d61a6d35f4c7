"""Keeps freed memory in the process, so that the buffers of frames are not mapped and unmapped for every frame.

By default the C library gives large buffers back to the kernel as they are freed, and each one that follows is
mapped and filled with zeros page by page: two buffers of 600 KB per frame were 260 page faults and more time than
all copies (measured; the round trip of such a frame fell from 2.6 to 1.4 ms without them). The price is that up to
`kept_bytes` of what was once used stays resident.

A setting of the whole process, made once by the commands that own theirs (the daemon, a sensor that streams);
the library does not touch the process of somebody else. glibc only: other C libraries are left as they are.
Source: mallopt(3).
"""

from __future__ import annotations

import ctypes

from mesh.hardware.limits import read_limits

MAX_KEPT_BYTES = 16 << 20
"""Several frames of the usual size at every step of their way; one that is larger is mapped anew."""

MIN_KEPT_BYTES = 2 << 20
"""Less would not hold the two buffers of one frame."""

MEMORY_SHARE = 64
"""At most this part of the memory that this process may use: 4 MiB on a board of 256 MB."""

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
"""Parameters of mallopt, as malloc.h numbers them."""


def keep_freed_memory(kept_bytes: int = 0) -> bool:
    """Let the C library keep up to `kept_bytes` per heap, 0 for what suits the device; whether it could be told."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept_bytes = kept_bytes or choose_kept_bytes(read_limits().memory_bytes)
    return bool(mallopt(_MMAP_THRESHOLD, kept_bytes)) and bool(mallopt(_TRIM_THRESHOLD, kept_bytes))


def choose_kept_bytes(memory_bytes: int) -> int:
    return min(MAX_KEPT_BYTES, max(MIN_KEPT_BYTES, memory_bytes // MEMORY_SHARE))
