"""How commands speak: data on standard output, talk on standard error, one exit code per kind of end."""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar

from mesh.errors import MeshError
from mesh.runtime.threads import PatientThreads, are_threads_left

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")

EXIT_INTERRUPTED = 130

OUTPUT_ERRORS = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Of standard output, such as a file on a disk that is full; files that a command writes have errors of their own."""

IMPATIENCE_S = 0.5
"""A second Ctrl-C after this is meant; sooner, a wrapper and the terminal may both have passed on the first one."""


def say(text: str) -> None:
    """To the person, not to the program that reads standard output."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def is_watched() -> bool:
    """Whether standard error is a terminal; closed by whoever started us, it is none."""
    return sys.stderr is not None and sys.stderr.isatty()


def print_json(document: object) -> None:
    """One document; numbers are finite by the time they get here."""
    print(json.dumps(document, allow_nan=False))


def fail(error: MeshError, as_json: bool) -> int:
    """Say what went wrong and return the exit code that goes with it."""
    if as_json:
        print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
    say(f"error: {error.message}")
    if error.hint:
        say(f"  {error.hint}")
    return error.exit_code


def exit_code_of(work: Callable[[], None], as_json: bool) -> int:
    """Do a command's work: errors that infermesh raises on purpose become a message and an exit code."""
    try:
        work()
    except MeshError as error:
        return fail(error, as_json)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError as error:
        return fail_to_print(error)
    return 0


def command(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Wrap a command for Typer: its work ends in the exit code of `exit_code_of`."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        import typer

        code = exit_code_of(lambda: function(*args, **kwargs), bool(kwargs.get("as_json", False)))
        if code:
            raise typer.Exit(code)

    return run


def survive_output_errors(run: Callable[[], int]) -> int:
    """The exit code of `run`, also where standard output cannot be written."""
    try:
        return run()
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS or error.filename is not None:
            raise
        return fail_to_print(error)


def run_async(work: Coroutine[Any, Any, Value]) -> Value:
    """Run a command's coroutine; Ctrl-C and SIGTERM cancel it, so that everything is closed in order.

    Interrupted again after a while, the process ends at once.
    """

    async def main() -> Value:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        loop = asyncio.get_running_loop()
        loop.set_default_executor(PatientThreads())
        interrupted_at: float | None = None

        def interrupt() -> None:
            nonlocal interrupted_at
            now = time.monotonic()
            if interrupted_at is None:
                interrupted_at = now
                task.cancel()
            elif now - interrupted_at > IMPATIENCE_S:
                os._exit(EXIT_INTERRUPTED)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        try:
            return await work
        except (asyncio.CancelledError, MeshError):
            if interrupted_at is not None:  # whatever came of it: this is why
                raise KeyboardInterrupt from None
            raise

    return asyncio.run(main())


def leave(code: int) -> NoReturn:
    """End the process with `code`, after what was printed has left it."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by whoever started us
                stream.flush()
    except OSError as error:
        failure = fail_to_print(error)
        code = code or failure
    # An orderly end would wait for threads; and Python ends by signal, not with our code, if a
    # KeyboardInterrupt ever passed through its `exec`, as it does while dataclasses are made.
    if are_threads_left() or code == EXIT_INTERRUPTED:
        os._exit(code)
    sys.exit(code)


def fail_to_print(error: OSError) -> int:
    """What was printed could not leave the process. A reader that has seen enough needs no words."""
    # Else the interpreter would try to flush it again at the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        say(f"error: standard output cannot be written: {error.strerror}")
    return 1
