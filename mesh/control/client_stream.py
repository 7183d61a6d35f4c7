"""A client's stream of frames as a pure state machine: who is owed what, and what goes where next.

The stream outlives the generations that carry it. A *path* is one generation's way through the mesh: an
edge into its head and a results link from its tail. Whoever owns the machine (`mesh.runtime.frame_stream`,
or the simulator) opens and loses paths, hands in what arrives and the time, and asks for what to do next:
`next_frame` for what to send, `take` for the answer that the consumer gets, `take_retired` for paths that
are no longer needed.

    offer ──► window ──next_frame──► path ──answer──► restored order ──take──► consumer
                 ▲                     │ lose_path
                 └── held, sent again ─┘

Every frame gets exactly one answer, from whichever path answers first; later ones are dropped and counted.
A frame holds its place in the window until its answer was taken *and* the mesh has let go of it, so neither
side ever holds more than the window.

- Lossless: a frame is held until it is answered. What was on a lost path goes first through the next one.
- Live: newest wins, and one frame waits to leave. What was on a lost path is answered `late` at its deadline,
  or `unknown` at once where it has none.

A newer path replaces an older one between two frames; the older stays until all of its frames are answered.

Mutable; owned by one client stream. Nothing here waits: `now` is handed in, in seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from mesh.control.answer_queue import Answer, AnswerQueue
from mesh.control.flow import FrameWindow
from mesh.control.stream_counters import StreamCounters
from mesh.core.frame import Frame, Outcome, StreamClass
from mesh.core.plan import Fence
from mesh.core.tensor import Tensor
from mesh.errors import MeshError, Overloaded, ProtocolViolation, Refused, StaleGeneration, Timeout


@dataclass(frozen=True, slots=True)
class StreamOptions:
    stream_class: StreamClass = StreamClass.LOSSLESS
    is_ordered: bool = True
    window: int | None = None
    """Frames in flight; None takes what the plan says."""
    deadline_s: float | None = None
    """Per frame, from sending to answer; None for no limit."""


@dataclass(slots=True)
class _Held:
    """A frame without an answer."""

    tensors: tuple[Tensor, ...]
    offered_at: float
    deadline_at: float | None
    traceparent: str


@dataclass(frozen=True, slots=True)
class _Path:
    fence: Fence
    stream: int


class ClientStream:
    """See the module. `window` is the number of frames in flight; `answer_bytes` as `FrameWindow` takes it."""

    def __init__(self, options: StreamOptions, window: int, answer_bytes: int | None = 0) -> None:
        self.options = options
        self.counters = StreamCounters()
        self.error: MeshError | None = None
        """What broke the stream for good; told to the consumer after the last answer."""
        self._is_live = options.stream_class is StreamClass.LIVE
        self._window = FrameWindow(window, answer_bytes)
        self._next_sequence = 0
        self._unanswered: dict[int, _Held] = {}
        self._queue: deque[int] = deque()
        """Lossless: to be sent through the current path, lowest first. May contain answered ones."""
        self._waiting: int | None = None
        """Live: the one frame that waits to leave."""
        self._lost: dict[int, MeshError] = {}
        """Live: unanswered, with what lost the path that it was on. At most a window of them."""
        self._given_up: set[int] = set()
        """Answered here, as late, and still somewhere in the mesh."""
        self._is_finished = False
        # Paths
        self._paths: dict[int, _Path] = {}
        self._current: int | None = None
        self._opened = 0
        self._on_path: dict[int, int] = {}
        """Which open path a frame is on, also after it was given up."""
        # Answers
        self._ready = AnswerQueue(options.is_ordered)
        self._untaken: set[int] = set()
        """Answered frames that were sent and whose answer nobody took; these hold their place."""
        self._untaken_lost: set[int] = set()
        self._untaken_late: set[int] = set()
        """Of live frames that never left."""

    # Reading --------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        return self._window.size

    @property
    def in_flight(self) -> int:
        """Frames that hold a place in the window."""
        return len(self._window)

    @property
    def unanswered(self) -> int:
        return len(self._unanswered)

    @property
    def ready_runs(self) -> int:
        """How much is kept for the consumer: answers, of which neighbours that were dropped count as one."""
        return len(self._ready)

    @property
    def current_path(self) -> int | None:
        return self._current

    @property
    def paths(self) -> tuple[int, ...]:
        """Open ones, the current one last."""
        return tuple(self._paths)

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    @property
    def is_answered(self) -> bool:
        """Everything that was offered is answered, and nothing more will come."""
        return self._is_finished and not self._unanswered

    @property
    def is_over(self) -> bool:
        """And the consumer has taken it all."""
        return self.is_answered and not self._ready.has_next

    @property
    def may_offer(self) -> bool:
        """Whether a frame is taken now: always by a live stream; by a lossless one if it has room and a path, and
        what was offered before has left."""
        return self._is_live or (self._window.is_open and self._current is not None and not self._queue)

    @property
    def first_unanswered(self) -> int:
        """Answers below this one are not wanted any more."""
        return next(iter(self._unanswered), self._next_sequence)

    @property
    def taken_through(self) -> int:
        """The consumer has taken the answer of every frame up to and including this one; -1 for none."""
        return self._ready.taken_through(self.first_unanswered)

    @property
    def next_deadline_at(self) -> float | None:
        """When `tick` has something to do next. Deadlines are in the order of the frames."""
        held = next(iter(self._unanswered.values()), None)
        return held.deadline_at if held is not None else None

    # Frames in ------------------------------------------------------------------------------------

    def offer(self, tensors: tuple[Tensor, ...], now: float, traceparent: str = "") -> int:
        """Take one frame; returns its sequence. Ask `may_offer` first.

        Raises what broke the stream, `Refused` after `finish`, `Overloaded` where there is no room.
        """
        if self.error is not None:
            raise self.error
        if self._is_finished:
            raise Refused("the stream was finished; no more frames can be sent")
        if not self.may_offer:
            raise Overloaded(f"the stream's window of {self.window} frames takes no more now")
        sequence = self._next_sequence
        self._next_sequence += 1
        self.counters.offered += 1
        if not self._unanswered:
            self.counters.busy(now)
        limit_s = self.options.deadline_s
        self._unanswered[sequence] = _Held(tensors, now, now + limit_s if limit_s is not None else None, traceparent)
        if self._is_live:
            superseded, self._waiting = self._waiting, sequence
            if superseded is not None:
                self._settle(Answer(superseded, Outcome.DROPPED, error=_SUPERSEDED))
        else:
            self._window.enter(sequence)
            self._queue.append(sequence)
        return sequence

    def finish(self) -> None:
        """No more frames will be offered."""
        self._is_finished = True

    def break_off(self, error: MeshError, now: float) -> None:
        """The stream is over: whatever is unanswered is `unknown`. Nothing happens once everything was answered."""
        if self.error is not None or self.is_answered:
            return
        self.error = error
        if self._unanswered:
            self.counters.heard(now)
        for sequence in list(self._unanswered):
            self._settle(Answer(sequence, Outcome.UNKNOWN, error=error))
        self._waiting = None
        self._queue.clear()
        for path in list(self._paths):
            self._forget_path(path)

    # Paths ----------------------------------------------------------------------------------------

    def open_path(self, fence: Fence, stream: int) -> int:
        """A path is open; new frames go through it from now on, after those that were lost with others.

        `stream` is what the frames are called on it. Raises `StaleGeneration` for one that is older than
        the current path: the mesh has moved on.
        """
        if self._current is not None:
            before = self._paths[self._current].fence
            if fence < before:
                raise StaleGeneration(f"a path of generation {fence} cannot replace one of {before}")
            self.counters.replacements += 1
        elif self._opened:
            self.counters.recoveries += 1
        self._opened += 1
        self._paths[self._opened] = _Path(fence, stream)
        self._current = self._opened
        return self._opened

    def lose_path(self, path: int, error: MeshError) -> None:
        """A path is gone, with `error`. Its frames are sent again, or (live) given up; unknown paths are ignored."""
        if path not in self._paths:
            return
        self.counters.losses += 1
        lost = self._forget_path(path)
        if self._is_live:
            self._give_up(lost, error)
        else:
            self.counters.replays += len(lost)
            self._queue = deque(sorted({*lost, *self._queue}))

    def take_retired(self) -> tuple[int, ...]:
        """Paths that were replaced and whose frames are all answered: to be closed, in an orderly way."""
        needed = {path for sequence, path in self._on_path.items() if sequence in self._unanswered}
        retired = tuple(path for path in self._paths if path != self._current and path not in needed)
        for path in retired:
            self._forget_path(path)
        return retired

    def _forget_path(self, path: int) -> list[int]:
        """The unanswered frames that were on it, lowest first."""
        del self._paths[path]
        if self._current == path:
            self._current = None
        gone = sorted(sequence for sequence, on in self._on_path.items() if on == path)
        for sequence in gone:
            del self._on_path[sequence]
            self._release(sequence)
        return [sequence for sequence in gone if sequence in self._unanswered]

    def _give_up(self, lost: Iterable[int], error: MeshError) -> None:
        for sequence in lost:
            self._window.answered(sequence)  # nobody holds it any more
            self._lost[sequence] = error
            if self.options.deadline_s is None:
                self._settle(Answer(sequence, Outcome.UNKNOWN, error=error))
        while len(self._lost) > self.window:  # several losses within one deadline
            oldest = min(self._lost)
            self._settle(Answer(oldest, Outcome.UNKNOWN, error=self._lost[oldest]))

    # Frames out -----------------------------------------------------------------------------------

    def next_frame(self, now: float) -> tuple[int, Frame] | None:
        """(path, frame) to be sent now, in that order; None until something changes."""
        if self._current is None:
            return None
        sequence = self._next_waiting() if self._is_live else self._next_queued()
        if sequence is None:
            return None
        held, path = self._unanswered[sequence], self._paths[self._current]
        self._on_path[sequence] = self._current
        budget_us = max(1, int((held.deadline_at - now) * 1e6)) if held.deadline_at is not None else 0
        frame = Frame(
            path.stream,
            sequence,
            path.fence.term,
            path.fence.generation,
            held.tensors,
            budget_us,
            traceparent=held.traceparent,
        )
        if self._is_live:
            held.tensors = ()  # it is never sent again
        return self._current, frame

    def _next_queued(self) -> int | None:
        while self._queue:
            sequence = self._queue.popleft()
            if sequence in self._unanswered:
                return sequence
        return None

    def _next_waiting(self) -> int | None:
        if self._waiting is None or not self._window.is_open or len(self._untaken_lost) >= self.window:
            return None
        sequence, self._waiting = self._waiting, None
        self._window.enter(sequence)
        return sequence

    # Answers in -----------------------------------------------------------------------------------

    def answer(self, path: int, frame: Frame, now: float) -> None:
        """The mesh answered a frame on `path`, which may be lost already.

        Raises `ProtocolViolation` for a frame that was never sent.
        """
        sequence = frame.sequence
        if sequence >= self._next_sequence or sequence == self._waiting:
            raise ProtocolViolation(f"an answer came to frame {sequence}, which was not sent")
        if self._on_path.get(sequence) == path:
            del self._on_path[sequence]
        if self._is_answered(sequence):
            if sequence in self._given_up:
                self._given_up.discard(sequence)
            else:
                self.counters.duplicates += 1
            self._release(sequence)
            return
        self.counters.heard(now)
        if frame.outcome is Outcome.OK:
            self._window.learn(frame.payload_bytes)
        latency_s = now - self._unanswered[sequence].offered_at
        self._settle(Answer(sequence, frame.outcome, frame.tensors, frame.error, latency_s, frame.hops))

    def _is_answered(self, sequence: int) -> bool:
        return sequence not in self._unanswered

    def tick(self, now: float) -> None:
        """Answer `late` what has passed its deadline."""
        while self._unanswered:
            sequence, held = next(iter(self._unanswered.items()))
            if held.deadline_at is None or held.deadline_at > now:
                return
            late = Answer(sequence, Outcome.LATE, error=Timeout(f"no answer within {self.options.deadline_s:g} s"))
            if sequence in self._on_path:
                self._given_up.add(sequence)
            elif sequence == self._waiting:
                self._waiting = None
                if len(self._untaken_late) < self.window:
                    self._untaken_late.add(sequence)
                else:  # late answers would pile up, dropped ones do not
                    late = Answer(sequence, Outcome.DROPPED, error=_UNTAKEN)
            self._settle(late)

    # Answers out ----------------------------------------------------------------------------------

    def _settle(self, answer: Answer) -> None:
        sequence = answer.sequence
        self._unanswered.pop(sequence, None)
        self.counters.outcomes[answer.outcome] += 1
        if sequence in self._window:
            self._untaken.add(sequence)
        elif self._lost.pop(sequence, None) is not None:
            self._untaken_lost.add(sequence)
        elif answer.outcome is Outcome.DROPPED and answer.error is not None:
            self._ready.put_dropped(sequence, answer.error)  # it never left
            return
        self._ready.put(answer)

    def take(self) -> Answer | None:
        """The next answer for the consumer: in order, or (unordered) as they came; None where there is none yet."""
        answer = self._ready.take()
        if answer is not None:
            for kept in (self._untaken, self._untaken_lost, self._untaken_late):
                kept.discard(answer.sequence)
            self._release(answer.sequence)
        return answer

    def _release(self, sequence: int) -> None:
        """Free the frame's place if it is answered, its answer was taken, and no node holds it."""
        if sequence in self._on_path:
            return
        self._given_up.discard(sequence)
        if sequence in self._window and sequence not in self._untaken and sequence not in self._unanswered:
            self._window.answered(sequence)


_SUPERSEDED = Overloaded("superseded by a newer frame before it left the client")
_UNTAKEN = Overloaded("its time was up before it left the client, whose consumer takes no answers")
