"""What scripts/check_mqtt runs and listens with: Mosquitto, the gateway as a process, and an ear on the broker."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MESH = [sys.executable, "-m", "nodes"]
DIGITS = ROOT / "nodes" / "demo_data" / "digits.onnx"
IMAGES = ROOT / "nodes" / "demo_data" / "digits_test.npz"
SIDE = 64
"""Pixels of the JPEG: the pipeline scales them to what the model takes."""
LIMIT_S = 30.0
AT_ONCE = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]


def jpeg(image: Any) -> bytes:
    file = io.BytesIO()
    pixels = (image.reshape(8, 8) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(file, "JPEG", quality=95)
    return file.getvalue()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Mosquitto:
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = self.folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1", "allow_anonymous true", "persistence true",
            f"persistence_location {self.folder}/", "autosave_on_changes true", "autosave_interval 1",
            "max_queued_messages 0", "log_type none",
        ]  # fmt: skip
        if os.geteuid() == 0:
            lines.append("user root")
        config.write_text("\n".join(lines) + "\n")
        program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert program is not None, "mosquitto is not installed"
        self.process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise AssertionError("the broker does not listen")

    def end(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(LIMIT_S)


@dataclass
class Gateway:
    file: Path
    addresses: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        peers = [word for address in self.addresses for word in ("--peer", address)]
        line = [*MESH, "pipeline", "run", str(self.file), "--no-mdns", *peers]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(line, cwd=ROOT, stderr=log, stdout=log)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(LIMIT_S)


@dataclass
class Ear:
    """What is said on the broker, by topic; survives the broker."""

    port: int
    heard: dict[str, list[bytes]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        while True:
            try:
                # A session of its own that outlives the broker, or what is said while this is away would be lost.
                async with aiomqtt.Client(
                    "127.0.0.1", self.port, identifier="ear", clean_session=False, socket_options=AT_ONCE
                ) as client:
                    for topic in ("mesh/out/#", "mesh/error/#", "mesh/bridge/#", "homeassistant/#"):
                        await client.subscribe(topic, qos=1)
                    self.note("listening", b"")
                    async for message in client.messages:
                        self.note(str(message.topic), bytes(message.payload))  # type: ignore[arg-type]
            except aiomqtt.MqttError:
                await asyncio.sleep(0.2)

    def note(self, topic: str, payload: bytes) -> None:
        self.heard.setdefault(topic, []).append(payload)
        self.changed.set()

    def last(self, topic: str) -> Any:
        return json.loads(self.heard[topic][-1])

    async def until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s: {what}; {self.summary()}"
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), 1)

    def summary(self) -> str:
        counts = {topic: len(told) for topic, told in self.heard.items()}
        errors = [told[-1].decode()[:300] for topic, told in self.heard.items() if "/error/" in topic]
        return f"heard {list(counts.items())[:20]}, errors {errors[:5]}"
