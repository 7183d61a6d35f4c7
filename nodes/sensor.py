"""`mesh infer` and `mesh stream`: data in, answers out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from mesh.client.mesh_client import Mesh, Result
from mesh.client.sinks import Sink, SinkRecord, open_sink
from mesh.client.sources import RateSchedule, Source, SourceFrame, open_source
from mesh.client.sources.arrays import MAX_NPZ_BYTES
from mesh.client.sources.files import open_file
from mesh.core.frame import Outcome, StreamClass
from mesh.core.tensor import TensorSpec
from mesh.errors import (
    MeshError,
    MissingExtra,
    RunFailed,
    SourceUnreadable,
    StorageError,
    TensorMismatch,
    UsageError,
)
from mesh.hardware.allocator import keep_freed_memory
from mesh.runtime.frame_stream import Answer, FrameStream, StreamOptions
from nodes.output import is_watched, print_json, say

if TYPE_CHECKING:
    from mesh.arrays import Array

SHOWN_ELEMENTS = 16
"""Outputs up to this size are printed; larger ones are described."""

PULL_AHEAD = 2
"""Frames read from a lossless source before the mesh takes them."""

PROGRESS_INTERVAL_S = 1.0

SLOWEST_RATE_HZ = 1 / 86_400
"""A frame a day; a stream that is slower than that would only seem to hang."""

SINK_GRACE_S = 2.0
"""For a sink to take the last answers of a stream that broke; a pipe that nobody reads never does."""

MAX_DEADLINE_S = 86_400
"""A day: who waits longer than that needs no deadline, and it must fit into a frame's header."""


def make_schedule(rate_hz: float | None) -> RateSchedule | None:
    """As `--rate` says; raises `UsageError` for a rate that makes no sense."""
    if rate_hz is not None and 0 < rate_hz < SLOWEST_RATE_HZ:
        raise UsageError(f"a rate of {rate_hz} frames per second is less than one frame a day")
    return RateSchedule(rate_hz) if rate_hz is not None else None


# infer --------------------------------------------------------------------------------------------


def read_feeds(path: Path, inputs: Sequence[TensorSpec]) -> tuple[list[dict[str, Array]], bool]:
    """Frames from an `.npz` file whose arrays are named as the inputs, and whether they had a frame axis.

    An array with one axis more than the model's input holds frames along its first axis.
    """
    return split_frames(read_arrays(path), inputs)


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file by name.

    Raises `SourceUnreadable`, `UsageError` for a lone array, and `MissingExtra`.
    """
    try:
        import numpy as np
    except ImportError:
        raise MissingExtra(
            "reading .npz needs NumPy", hint="install the extra infermesh[numpy]: pip install '.[numpy]' in a clone"
        ) from None
    with open_file(path) as file:
        try:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise UsageError(
                    f"{path} holds one array without a name", hint="save it with numpy.savez(path, NAME=array)"
                )
            total = sum(member.file_size for member in archive.zip.infolist())
            if total > MAX_NPZ_BYTES:
                raise SourceUnreadable(f"{path} unpacks to {total} bytes, the limit is {MAX_NPZ_BYTES}")
            return {name: archive[name] for name in archive.files}
        except MeshError:
            raise
        except Exception as error:  # numpy raises zipfile's, zlib's, struct's and its own
            raise SourceUnreadable(
                f"{path} is no readable .npz file: {_explain(error)}",
                hint="save plain numeric arrays: numpy.savez(path, NAME=array)",
            ) from None


def _explain(error: Exception) -> str:
    """NumPy takes everything that it does not know for a pickle, and then advises to allow that."""
    return "it holds Python objects, or is damaged" if "pickle" in str(error) else str(error)


def split_frames(arrays: dict[str, Array], inputs: Sequence[TensorSpec]) -> tuple[list[dict[str, Array]], bool]:
    names = [spec.name for spec in inputs]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise TensorMismatch(f"no array is named {missing}; the file has {sorted(arrays)}, the inputs are {names}")
    framed = {spec.name: spec.shape is not None and arrays[spec.name].ndim == len(spec.shape) + 1 for spec in inputs}
    if not any(framed.values()):
        return [{name: arrays[name] for name in names}], False
    if not all(framed.values()):
        raise TensorMismatch(f"some inputs have a frame axis and some have none: {framed}")
    counts = {name: len(arrays[name]) for name in names}
    if len(set(counts.values())) != 1:
        raise TensorMismatch(f"the inputs have different numbers of frames: {counts}")
    if counts[names[0]] == 0:
        raise TensorMismatch("the arrays hold no frames")
    return [{name: arrays[name][index] for name in names} for index in range(counts[names[0]])], True


async def infer(connection: Mesh, name: str, source: Path, output: Path | None, as_json: bool) -> None:
    keep_freed_memory()
    async with connection as mesh:
        model = await mesh.model(name)
        frames, has_frame_axis = await asyncio.to_thread(read_feeds, source, model.inputs)
        results: list[dict[str, Array]] = []
        async for result in model.stream(frames):
            if result.outcome is not Outcome.OK:
                raise result.error or RunFailed(f"frame {result.sequence} was answered {result.outcome.name.lower()}")
            results.append(dict(result))
    import numpy as np

    names = [spec.name for spec in model.outputs]
    made = {n: np.stack([r[n] for r in results]) if has_frame_axis else results[0][n] for n in names} if results else {}
    if output is not None:
        await asyncio.to_thread(write_npz, output, made)
    shown = {
        n: {"dtype": str(a.dtype), "shape": list(a.shape), "data": a.tolist() if a.size <= SHOWN_ELEMENTS else None}
        for n, a in made.items()
    }
    if as_json:
        print_json({"frames": len(results), "outputs": _finite(shown), "output": str(output) if output else None})
        return
    for n, array in shown.items():
        print(f"{n}: {array['dtype']}{array['shape']}" + (f" {array['data']}" if array["data"] is not None else ""))
    print(f"{len(results)} frames" + (f", written to {output}" if output else ""))


def write_npz(path: Path, arrays: dict[str, Array]) -> None:
    """All or nothing: under another name first. Raises `StorageError`s that say what to do."""
    import numpy as np

    from mesh.client.sinks.storage import storage_error

    if path.exists() and not path.is_file():
        # Replacing it would put a file in place of a device or a folder.
        raise StorageError(f"{path} exists and is no regular file", hint="give the name of a new file with --output")
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise storage_error(error, str(path)) from None


def _finite(value: Any) -> Any:
    """JSON has no NaN: such numbers become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


# stream -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What became of the frames of one stream."""

    sent: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    def add(self, answer: Answer | Result, now: float) -> None:
        self.outcomes[answer.outcome] += 1
        self.ended = now
        if answer.latency_s is not None and answer.outcome is Outcome.OK:
            self.latencies_s.append(answer.latency_s)

    @property
    def throughput_per_s(self) -> float:
        return self.outcomes[Outcome.OK] / max(self.ended - self.began, 1e-9) if self.outcomes[Outcome.OK] else 0.0

    def percentile_ms(self, share: float) -> float:
        """Nearest-rank percentile of the latency in milliseconds; 0 without answers."""
        if not self.latencies_s:
            return 0.0
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] * 1e3

    def document(self) -> dict[str, Any]:
        return {
            "frames": self.sent,
            "outcomes": {
                outcome.name.lower(): count
                for outcome, count in sorted(self.outcomes.items(), key=lambda i: i[0].value)
            },
            "throughput_per_s": self.throughput_per_s,
            "latency_ms": {"p50": self.percentile_ms(0.5), "p99": self.percentile_ms(0.99)},
        }


class SensorRun:
    """One `mesh stream`: pulls the source on a thread, paces it, writes the sink."""

    def __init__(self, source: Source, sink: Sink, schedule: RateSchedule | None, report: bool) -> None:
        self._source = source
        self._sink = sink
        self._schedule = schedule
        self._report = report
        self._origins: dict[int, str] = {}
        self._source_error: MeshError | None = None
        self.tally = Tally()

    async def run(self, mesh: Mesh, stream: FrameStream) -> None:
        self.tally.began = self.tally.ended = time.monotonic()
        feeding = mesh.tasks.spawn(self._feed(stream), "sensor: feed")
        told_at = self.tally.began
        try:
            async for answer in stream.answers():
                now = time.monotonic()
                self.tally.add(answer, now)
                await asyncio.to_thread(self._sink.write, self._record(answer))
                if self._report and now - told_at >= PROGRESS_INTERVAL_S:
                    told_at = now
                    say(f"{sum(self.tally.outcomes.values())} answered, {self.tally.throughput_per_s:.1f}/s")
        finally:
            self._source.close()
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        if self._source_error is not None:
            raise self._source_error

    def _record(self, answer: Answer) -> SinkRecord:
        origin = self._origins.pop(answer.sequence, "")
        return SinkRecord(answer.sequence, answer.outcome, answer.tensors, origin, answer.latency_s, answer.error)

    async def _feed(self, stream: FrameStream) -> None:
        frames: Iterator[SourceFrame] = self._source.frames()
        try:
            while (frame := await asyncio.to_thread(next, frames, None)) is not None:
                if self._schedule is not None:
                    due = self._schedule.due(self.tally.sent, self.tally.began)
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                sequence = await stream.send(frame.tensors)
                self._origins[sequence] = frame.origin
                self.tally.sent += 1
        except MeshError as error:
            # What was sent before is still answered; the command then ends with this.
            self._source_error = error
        stream.finish()


def open_stdin() -> BinaryIO:
    """Standard input; an empty one where whoever started us has closed it."""
    return sys.stdin.buffer if sys.stdin is not None else io.BytesIO()


@contextlib.contextmanager
def open_stdout() -> Iterator[TextIO]:
    """Standard output; one that forgets everything where whoever started us has closed it."""
    if sys.stdout is not None:
        yield sys.stdout
    else:
        with Path(os.devnull).open("w") as nowhere:
            yield nowhere


async def stream(
    connection: Mesh,
    name: str,
    source_url: str,
    sink_url: str,
    rate_hz: float | None,
    live: bool,
    deadline_s: float | None,
    as_json: bool,
) -> None:
    keep_freed_memory()
    schedule = make_schedule(rate_hz)
    if deadline_s is not None and not 0 < deadline_s <= MAX_DEADLINE_S:
        raise UsageError(
            f"a deadline of {deadline_s:g} s makes no sense", hint=f"give a number above 0, at most {MAX_DEADLINE_S}"
        )
    async with contextlib.AsyncExitStack() as stack:
        stdout = stack.enter_context(open_stdout())
        mesh = await stack.enter_async_context(connection)
        model = await mesh.model(name)
        # In threads: to open a named pipe waits for its other end.
        source = await asyncio.to_thread(open_source, source_url, model.inputs, stdin=open_stdin())
        try:
            sink = await asyncio.to_thread(open_sink, sink_url, model.outputs, stdout=stdout)
        except (MeshError, asyncio.CancelledError):
            source.close()
            raise
        if schedule is None and live and source.natural_rate_hz is not None:
            schedule = RateSchedule(source.natural_rate_hz)
        options = StreamOptions(stream_class=StreamClass.LIVE if live else StreamClass.LOSSLESS, deadline_s=deadline_s)
        run = SensorRun(source, sink, schedule, report=not as_json and is_watched())
        try:
            async with mesh.open_stream(model.deployment, options) as frames:
                await run.run(mesh, frames)
        except BaseException:
            # An interrupt or a lost node: what was answered until then stands, if the sink takes it.
            with contextlib.suppress(TimeoutError, StorageError):  # the first error is the one to tell
                async with asyncio.timeout(SINK_GRACE_S):
                    await asyncio.to_thread(sink.close)
            raise
        await asyncio.to_thread(sink.close)
    writes_to_stdout = sink_url == "-" or sink_url.startswith("jsonl:-")
    if as_json and not writes_to_stdout:
        print_json(run.tally.document())
    else:
        tally = run.tally
        told = ", ".join(f"{count} {outcome.name.lower()}" for outcome, count in tally.outcomes.items())
        say(
            f"{tally.sent} frames: {told or 'no answers'}; {tally.throughput_per_s:.1f}/s, "
            f"p50 {tally.percentile_ms(0.5):.1f} ms, p99 {tally.percentile_ms(0.99):.1f} ms"
        )
