"""How commands speak: data on standard output, talk on standard error, one exit code per kind of end."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import typer

from mesh.errors import MeshError

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")

EXIT_INTERRUPTED = 130


def say(text: str) -> None:
    """To the person, not to the program that reads standard output."""
    typer.echo(text, err=True)


def print_json(document: object) -> None:
    """One document; numbers are finite by the time they get here."""
    typer.echo(json.dumps(document, allow_nan=False))


def fail(error: MeshError, as_json: bool) -> typer.Exit:
    """Say what went wrong and return the exit that goes with it."""
    if as_json:
        print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
    say(f"error: {error.message}")
    if error.hint:
        say(f"  {error.hint}")
    return typer.Exit(error.exit_code)


def command(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Wrap a command: errors that infermesh raises on purpose become a message and an exit code."""

    @functools.wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        as_json = bool(kwargs.get("as_json", False))
        try:
            function(*args, **kwargs)
        except MeshError as error:
            raise fail(error, as_json) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output has seen enough; the interpreter must not try to flush it again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None

    return run


def run_async(work: Coroutine[Any, Any, Value]) -> Value:
    """Run a command's coroutine; Ctrl-C and SIGTERM cancel it, so that everything is closed in order."""

    async def main() -> Value:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        loop = asyncio.get_running_loop()
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        try:
            return await work
        except asyncio.CancelledError:
            if interrupted:
                raise KeyboardInterrupt from None
            raise

    return asyncio.run(main())
