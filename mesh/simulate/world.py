"""Virtual time, hosts that crash and freeze, and what happens on them.

A `World` is a heap of things that will happen and a clock that jumps from one to the next. All chance comes
from its one random generator, so a seed is a whole history. `Host` stands between an event and its effect:
what is due on a crashed host never happens, what is due on a frozen one happens when it thaws.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from random import Random
from typing import Any, TypeAlias, TypeVar

Act = Callable[[], None]
Found = TypeVar("Found")

Course: TypeAlias = Generator["float | Result", Any, Found]
"""What is done on one host over time: yields seconds to sleep, or a `Result` to wait for, which it is sent."""


class Violation(AssertionError):
    """The protocol broke one of its promises."""


class World:
    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.now = 0.0
        self.random = Random(seed)  # noqa: S311 - chance that can be repeated is the point
        self.is_traced = trace is not None
        self.checks: list[Act] = []
        """Called after every step; raise `Violation`."""
        self._trace = trace
        self._due: list[tuple[float, int, Act]] = []
        self._order = itertools.count()

    def note(self, text: str) -> None:
        if self._trace is not None:
            self._trace(f"{self.now:9.4f}  {text}")

    def after(self, seconds: float, act: Act) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), act))

    def run(self, until: float, is_done: Callable[[], bool]) -> None:
        """Let time pass until `until`, or until `is_done`."""
        while self._due and self._due[0][0] <= until and not is_done():
            self.now, _, act = heapq.heappop(self._due)
            act()
            for check in self.checks:
                check()


class Result:
    """A value that will be there once."""

    def __init__(self) -> None:
        self.is_set = False
        self._value: Any = None
        self._waiting: Callable[[Any], None] | None = None

    def set(self, value: object) -> None:
        """The first one counts."""
        if not self.is_set:
            self.is_set, self._value = True, value
            if self._waiting is not None:
                self._waiting(value)

    def then(self, waiting: Callable[[Any], None]) -> None:
        if self.is_set:
            waiting(self._value)
        else:
            self._waiting = waiting


class Host:
    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.is_up = True
        self.is_dark = False
        """Down without a kernel that could tell anybody."""
        self.is_frozen = False
        self.incarnation = 0
        self._held: list[tuple[int, Act]] = []

    def run(self, incarnation: int, act: Act) -> None:
        """Do it, if this is still the process that it is meant for."""
        if incarnation != self.incarnation or not self.is_up:
            return
        if self.is_frozen:
            self._held.append((incarnation, act))
        else:
            act()

    def after(self, seconds: float, act: Act) -> None:
        incarnation = self.incarnation
        self.world.after(seconds, lambda: self.run(incarnation, act))

    def start(self, course: Course[None]) -> None:
        self._resume(course, None)

    def _resume(self, course: Course[None], value: object) -> None:
        try:
            wait = course.send(value)
        except StopIteration:
            return
        if isinstance(wait, Result):
            wait.then(lambda found: self._resume(course, found))
        else:
            self.after(wait, lambda: self._resume(course, None))

    def stop(self, is_dark: bool) -> None:
        self.is_up, self.is_dark, self.is_frozen = False, is_dark, False
        self.incarnation += 1
        self._held.clear()

    def start_again(self) -> None:
        self.is_up, self.is_dark = True, False
        self.incarnation += 1

    def thaw(self) -> None:
        self.is_frozen = False
        held, self._held = self._held, []
        for incarnation, act in held:
            self.run(incarnation, act)
