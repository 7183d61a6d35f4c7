"""Whether gRPC knows what the daemon asks of it, and is asked in time."""

from __future__ import annotations

import subprocess
import sys

from mesh.wire.experiments import READ_IN_LARGER_PIECES

START = """
import os, sys
from nodes.cli import app
assert "grpc" not in sys.modules, "too late"
from mesh.wire.experiments import read_in_larger_pieces
read_in_larger_pieces()
if len(sys.argv) > 1: os.environ["GRPC_EXPERIMENTS"] += ",made_up"
import grpc
grpc.insecure_channel("127.0.0.1:1").close()
print(os.environ["GRPC_EXPERIMENTS"])
"""


def start(*arguments: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", START, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip(), done.stderr


def test_grpc_knows_what_it_is_asked_for() -> None:
    told, noise = start()
    assert told == ",".join(READ_IN_LARGER_PIECES)
    assert "Unknown experiment" not in noise


def test_grpc_would_say_what_it_does_not_know() -> None:
    assert "made_up" in start("made_up")[1]
