"""Records what one stage does to each frame, for as long as somebody traces it.

`NodeService` runs `trace_stage` per request; while it runs, the stage has a recorder, and else none, so
that frames cost nothing more. Spans are in this node's monotonic clock and in a ring: the newest stay.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from mesh.core.frame import Frame
from mesh.core.measurement import StageSpan, StageTrace
from mesh.errors import Overloaded, UsageError
from mesh.runtime.stage import Stage

MAX_TRACE_SECONDS = 120.0
"""What a person looks at is seconds long; a tracer that was forgotten ends by itself."""

MAX_SPANS = 20_000
"""Per stage, about 4 MiB: two minutes of 160 frames a second, more of which nobody looks at one by one."""

SPANS_PER_ANSWER = 2048


async def trace_stage(stage: Stage, seconds: float) -> AsyncGenerator[StageTrace, None]:
    """An empty trace once recording has begun; after `seconds` the spans, oldest first.

    Raises `UsageError` for a time out of bounds and `Overloaded` while someone else traces the stage.
    """
    if not 0 < seconds <= MAX_TRACE_SECONDS:
        raise UsageError(f"a trace of {seconds:g} s is outside 0..{MAX_TRACE_SECONDS:g}")
    if stage.recorder is not None:
        raise Overloaded(f"stage {stage.index} of {stage.deployment.name!r} is being traced", hint="try again later")
    ring: deque[StageSpan] = deque(maxlen=MAX_SPANS)

    def record(frame: Frame, received_at: float, sent_at: float) -> None:
        hop = frame.hops[-1] if frame.hops else None
        if hop is None or hop.stage != stage.index:
            return  # it was not computed here
        started_at = received_at + hop.queue_us / 1e6
        ended_at = started_at + hop.compute_us / 1e6
        ring.append(
            StageSpan(frame.stream, frame.sequence, received_at, started_at, ended_at, sent_at, frame.traceparent)
        )

    stage.recorder = record
    try:
        yield StageTrace(stage.index, ())
        await asyncio.sleep(seconds)
    finally:
        stage.recorder = None
    spans = tuple(ring)
    for first in range(0, len(spans), SPANS_PER_ANSWER):
        yield StageTrace(stage.index, spans[first : first + SPANS_PER_ANSWER])
