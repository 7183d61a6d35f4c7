"""Buffers that are freed and made again cost no page faults once the allocator is told to keep them."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from mesh.hardware.allocator import MAX_KEPT_BYTES, MIN_KEPT_BYTES, choose_kept_bytes

PROGRAM = """
import resource, sys
if sys.argv[1] == "kept":
    from mesh.hardware.allocator import keep_freed_memory
    assert keep_freed_memory()
part = bytes(300_000)
def frames(count):
    for _ in range(count):
        buffers = [b"".join((part, part)) for _ in range(4)]
        del buffers
frames(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
frames(50)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
BUFFERS = 50 * 4
has_mallopt = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")


def count_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], stdout=subprocess.PIPE, check=True, timeout=60)
    return int(done.stdout)


@has_mallopt
def test_buffers_are_used_again() -> None:
    assert count_faults("kept") < BUFFERS, "less than one per buffer, each of which has 146 pages"
    assert count_faults("as it is") > 10 * BUFFERS, "the reason for telling it"


@pytest.mark.parametrize(
    ("memory_bytes", "kept_bytes"),
    [(64 << 20, MIN_KEPT_BYTES), (256 << 20, 4 << 20), (512 << 20, 8 << 20), (8 << 30, MAX_KEPT_BYTES)],
)
def test_small_boards_keep_less(memory_bytes: int, kept_bytes: int) -> None:
    assert choose_kept_bytes(memory_bytes) == kept_bytes
