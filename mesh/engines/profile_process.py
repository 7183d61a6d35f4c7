"""Profiling a model in a process of its own: the parent's side of `mesh.engines.profile_child`. Blocks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesh.core.report import KernelTime, ModelProfile
from mesh.engines.contract import LoadOptions
from mesh.errors import EngineDied, LoadFailed, Timeout

PROFILE_LIMIT_S = 45.0
"""Over the budget, for starting, loading the model several times and what is under way when the budget is spent."""

MAX_PEAK_BYTES = 1 << 48
"""More than any device has: a figure above it is a mistake."""

STOP_POLL_S = 0.1
PACKAGE_ROOT = str(Path(__file__).parents[2])


def profile_model(
    whole: Path, parts: Sequence[Path], options: LoadOptions, budget_s: float, stop: threading.Event
) -> ModelProfile:
    """Kernels of `whole`, and the time of each of `parts` over that of `whole`. Setting `stop` ends it.

    Raises `LoadFailed` with what the child said, `EngineDied` where it crashed, `Timeout`.
    """
    path = [PACKAGE_ROOT, *sys.path]
    program = f"import sys; sys.path[:] = {path!r}; from mesh.engines.profile_child import main; sys.exit(main())"
    asked = {
        "whole": str(whole),
        "parts": [str(part) for part in parts],
        "threads": options.threads,
        "providers": list(options.providers),
        "budget_seconds": budget_s,
        "parent": os.getpid(),
    }
    with subprocess.Popen(  # noqa: S603 - our own interpreter and program
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            output = _communicate(child, json.dumps(asked).encode(), budget_s + PROFILE_LIMIT_S, stop)
        finally:
            child.kill()  # does nothing to one that has ended
    if child.returncode:
        raise EngineDied(f"profiling the model ended with {child.returncode}")
    return parse_profile(output, len(parts))


def _communicate(child: subprocess.Popen[bytes], asked: bytes, limit_s: float, stop: threading.Event) -> bytes:
    deadline = time.monotonic() + limit_s
    to_send: bytes | None = asked
    while True:
        try:
            return child.communicate(to_send, timeout=STOP_POLL_S)[0]
        except subprocess.TimeoutExpired:
            to_send = None
            if stop.is_set() or time.monotonic() >= deadline:
                raise Timeout(f"the model was not profiled within {limit_s:g} s") from None


def parse_profile(output: bytes, parts: int) -> ModelProfile:
    """What the child printed. Raises `LoadFailed` with its reason, or where it makes no sense."""
    try:
        told: dict[str, Any] = json.loads(output)
        if "error" in told:
            raise LoadFailed(f"the model cannot be profiled: {told['error']}")
        kernels = tuple(KernelTime(str(name), _number(seconds)) for name, seconds in told["kernels"])
        ratios = tuple(_number(ratio) for ratio in told["part_ratios"])
        peak, *part_peaks = map(_size, told["peak_bytes"])
        profile = ModelProfile(kernels, ratios, peak, tuple(part_peaks))
    except (ValueError, TypeError, KeyError) as error:
        raise LoadFailed(f"the profile of the model makes no sense: {error}") from error
    if len(ratios) != parts or len(part_peaks) != parts:
        raise LoadFailed(f"the profile tells of {len(ratios)} parts, {parts} were asked for")
    return profile


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{number} is no duration")
    return number


def _size(value: Any) -> int:
    size = int(value)
    if not 0 <= size <= MAX_PEAK_BYTES:
        raise ValueError(f"{size} bytes of memory")
    return size
