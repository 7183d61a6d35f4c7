"""`mesh pipeline run --broker`: pipelines where there is no MQTT broker yet."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from pathlib import Path

import aiomqtt
import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.commands import LocalFleet, run

PIPELINES = """
[[pipeline]]
name = "p"
model = "{model}"
[pipeline.source]
kind = "image"
[pipeline.input]
resize = true
[pipeline.output]
kind = "labels"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[mqtt]
host = "{host}"
port = {port}
{more}
"""
ANSWER_LIMIT_S = 20.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def write_file(folder: Path, model: str = "digits", host: str = "127.0.0.1", port: int = 0, more: str = "") -> Path:
    path = folder / "pipelines.toml"
    path.write_text(PIPELINES.format(model=model, host=host, port=port or free_port(), more=more))
    return path


def test_a_picture_is_answered(fleet: LocalFleet, digits: str, tmp_path: Path) -> None:
    port = free_port()
    file = write_file(tmp_path, digits, port=port)
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture, "PNG")

    async def ask() -> dict[str, object]:
        async with asyncio.timeout(ANSWER_LIMIT_S), aiomqtt.Client("127.0.0.1", port) as client:
            await client.subscribe("mesh/#", qos=1)
            await client.publish("mesh/in/p/cam", picture.getvalue(), qos=1)
            async for message in client.messages:
                if str(message.topic) == "mesh/out/p/cam":
                    found: dict[str, object] = json.loads(bytes(message.payload))  # type: ignore[arg-type]
                    return found
        raise AssertionError("the broker hung up")

    with fleet.start("pipeline", "run", str(file), "--broker") as running:
        running.wait_for("connected to the MQTT broker")
        assert asyncio.run(ask())["source"] == "cam"
        running.process.terminate()
        ended = running.wait()
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("more", "host", "words"),
    [
        ('version = "5"', "127.0.0.1", "3.1.1"),
        ('username = "me"', "127.0.0.1", "passwords"),
        ("", "0.0.0.0", "--insecure"),
    ],
)
def test_what_it_is_not_is_refused(more: str, host: str, words: str, tmp_path: Path) -> None:
    file = write_file(tmp_path, host=host, more=more)
    run("pipeline", "run", str(file), "--broker", "--no-mdns", "--peer", "127.0.0.1:1").fails("usage", 2, words)


def test_a_broker_that_is_there_already_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = write_file(tmp_path, port=taken.getsockname()[1])
        run("pipeline", "run", str(file), "--broker", "--no-mdns", "--peer", "127.0.0.1:1").fails("listen", 1, "taken")
