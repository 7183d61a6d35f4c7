"""How fast this device is: single-precision GFLOP/s and memory bandwidth. Runs in the probe's child only.

Rough figures for the planner's first estimate, replaced by measured segment times once models are loaded.
Both are work divided by wall time over a span that covers several scheduling periods: the best single
round would tell a device under a CPU quota the speed of its bursts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

MATRIX_SIZE = 384
"""0.11 GFLOP per product: about 0.1 s on the weakest board, and long enough on fast ones to keep threads busy."""

COMPUTE_SECONDS = 0.7
COPY_SECONDS = 0.4
"""With warm-up the whole stays near 1.5 s; several times the common quota period of 0.1 s."""

COPY_BYTES = 32 << 20
"""Larger than the caches of the boards this is for."""

MEMORY_SHARE = 16
"""At most this part of the available memory is used for the copy, twice."""

CODED_BYTES = 1 << 20
"""An activation of the usual size."""

CODING_SECONDS = 0.02
"""Of each direction of each of five codecs: a fifth of a second of a node's start in all."""

MIN_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Speed:
    gflops: float
    """10^9 floating-point operations per second in a MatMul; multiply and add count as two."""
    memory_gb_per_s: float
    """10^9 bytes per second in a copy by one thread; each byte counts twice (read and written), as STREAM does."""


def measure(threads: int) -> Speed:
    """Measure on the CPU provider with so many threads; takes about 1.5 s, two products at the least."""
    return Speed(gflops=measure_gflops(threads), memory_gb_per_s=measure_memory())


def measure_gflops(threads: int, seconds: float = COMPUTE_SECONDS, size: int = MATRIX_SIZE) -> float:
    import numpy

    from mesh.hardware.matmul_model import INPUT_NAME, build_matmul_model
    from mesh.hardware.providers import CPU_PROVIDER, make_session

    generator = numpy.random.default_rng(2)
    weights = generator.uniform(-1, 1, (size, size)).astype("<f4")
    feeds = {INPUT_NAME: generator.uniform(-1, 1, (size, size)).astype("<f4")}
    session = make_session(build_matmul_model(size, weights.tobytes()), CPU_PROVIDER, threads)
    session.run(None, feeds)  # warm-up: allocations, thread pool, frequency governor
    return rate_over(seconds, lambda: session.run(None, feeds)) * 2 * size**3 / 1e9


def measure_memory(seconds: float = COPY_SECONDS) -> float:
    import numpy

    from mesh.hardware.limits import read_limits

    copy_bytes = min(COPY_BYTES, max(MIN_COPY_BYTES, read_limits().memory_available_bytes // MEMORY_SHARE))
    source = numpy.ones(copy_bytes, dtype=numpy.uint8)
    target = numpy.zeros_like(source)
    numpy.copyto(target, source)  # warm-up: page faults
    return rate_over(seconds, lambda: numpy.copyto(target, source)) * 2 * copy_bytes / 1e9


def measure_codecs(seconds: float = CODING_SECONDS) -> dict[str, tuple[float, float]]:
    """Seconds per byte of tensors to write and to read them, of every codec but raw; by one thread."""
    import numpy

    from mesh.arrays import from_array
    from mesh.codecs import decode_tensor, encode_tensor, spoken_codecs
    from mesh.core.coding import RAW, CodedTensor

    noise = numpy.random.default_rng(3).standard_normal(CODED_BYTES // 4)
    tensor = from_array(numpy.maximum(noise, 0).astype("<f4"))  # half of it zeros, as behind a ReLU
    found: dict[str, tuple[float, float]] = {}
    for codec in spoken_codecs():
        coded = encode_tensor(tensor, codec)
        if codec == RAW or not isinstance(coded, CodedTensor):
            continue
        encoding = rate_over(seconds, lambda codec=codec: encode_tensor(tensor, codec))  # type: ignore[misc]
        decoding = rate_over(seconds, lambda coded=coded: decode_tensor(coded))  # type: ignore[misc]
        found[codec] = 1 / (encoding * CODED_BYTES), 1 / (decoding * CODED_BYTES)
    return found


def rate_over(seconds: float, work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How often per second `work` is done, repeated for at least `seconds`; once at the least."""
    count, start, elapsed = 0, clock(), 0.0
    while elapsed < seconds or count == 0:
        work()
        count += 1
        elapsed = clock() - start
    return count / elapsed if elapsed > 0 else 0.0
