"""The checks of `scripts/check_mqtt`: two daemons, Mosquitto and `mesh pipeline run` on this machine, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiomqtt
import numpy as np
import onnxruntime
from mqtt_faults import check_kills, check_reconnects, check_windows
from mqtt_parts import AT_ONCE, DIGITS, IMAGES, LIMIT_S, MESH, ROOT, Ear, Gateway, Mosquitto, free_port, jpeg
from PIL import Image

import mesh
from mesh.pipelines.features import log_mel
from nodes.local_mesh import local_nodes, vanishing_folder

PICTURES = 60
OVERHEAD_TARGET_MS = 30.0

PIPELINES = """
[[pipeline]]
name = "digits"
[pipeline.source]
kind = "image"
[pipeline.input]
resize = true
[pipeline.output]
kind = "labels"
softmax = true

[[pipeline]]
name = "numbers"
model = "digits"
[pipeline.source]
kind = "json"
[pipeline.output]
kind = "labels"

[[pipeline]]
name = "tones"
[pipeline.source]
kind = "audio"
rate_hz = 8000
[pipeline.window]
size_s = 1.0
[pipeline.input]
features = "log-mel"
frame_s = 0.064
step_s = 0.032
bands = 20
[pipeline.output]
kind = "labels"
labels = ["silence", "low", "high", "up", "down"]

[[pipeline]]
name = "rows"
model = "digits"
[pipeline.source]
kind = "json"
channels = 8
[pipeline.window]
kind = "count"
size = 8
[pipeline.output]
kind = "labels"

[mqtt]
host = "127.0.0.1"
port = {port}
version = "{version}"
client_id = "check"
home_assistant = "homeassistant"
"""


def offline_digits(pictures: list[bytes]) -> list[str]:
    """What the model says of the same files without any mesh."""
    session = onnxruntime.InferenceSession(DIGITS)
    labels = []
    for picture in pictures:
        image = Image.open(io.BytesIO(picture)).convert("L").resize((8, 8), Image.Resampling.BILINEAR)
        values = (np.asarray(image, np.float32) / 255).reshape(1, 1, 8, 8)
        labels.append(str(session.run(None, {"image": values})[0].argmax()))
    return labels


async def publish(port: int, topic: str, payloads: list[bytes], version: str = "mqttv311") -> None:
    """By mosquitto_pub, one call for each file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "message"
        for payload in payloads:
            file.write_bytes(payload)
            line = ["mosquitto_pub", "-p", str(port), "-V", version, "-q", "1", "-t", topic, "-f", str(file)]
            done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=LIMIT_S)
            assert done.returncode == 0, done.stderr


async def check_pictures(ear: Ear, port: int) -> None:
    data = np.load(IMAGES)
    pictures = [jpeg(image) for image in data["image"][:PICTURES]]
    await publish(port, "mesh/in/digits/cam", pictures)
    topic = "mesh/out/digits/cam"
    await ear.until(lambda: len(ear.heard.get(topic, [])) == PICTURES, "every picture is answered")
    found = [json.loads(told)["label"] for told in ear.heard[topic]]
    expected = offline_digits(pictures)
    assert found == expected, list(zip(found, expected, strict=True))
    right = sum(label == str(true) for label, true in zip(found, data["label"][:PICTURES], strict=True))
    device = ear.last("homeassistant/device/infermesh_digits_cam/config")
    assert device["state_topic"] == topic
    print(f"JPEG to label: {PICTURES} of {PICTURES} as offline, {right / PICTURES:.1%} right")


async def check_sound(ear: Ear, port: int, sounds: Path, model: Path) -> None:
    data = np.load(sounds)
    chunks = []
    for first in range(0, data["sound"].size, 3000):  # chunks that know nothing of where a sound begins
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(8000)
            writer.writeframes(data["sound"].reshape(-1)[first : first + 3000].astype("<i2").tobytes())
        chunks.append(file.getvalue())
    async with aiomqtt.Client("127.0.0.1", port, identifier="microphone") as client:
        for chunk in chunks:
            await client.publish("mesh/in/tones/mic", chunk, qos=1)
            await asyncio.sleep(0.02)  # as a microphone does, only faster
    topic = "mesh/out/tones/mic"
    await ear.until(lambda: len(ear.heard.get(topic, [])) == len(data["sound"]), "every sound is answered")
    session = onnxruntime.InferenceSession(model)
    words = ["silence", "low", "high", "up", "down"]
    expected = []
    for sound in data["sound"]:
        features = log_mel(sound.astype(np.float32) / 32768, 8000, 0.064, 0.032, 20)
        expected.append(words[int(session.run(None, {"features": features[None, None]})[0].argmax())])
    found = [json.loads(told)["label"] for told in ear.heard[topic]]
    assert found == expected
    right = sum(word == words[true] for word, true in zip(found, data["label"], strict=True))
    print(f"WAV chunks to words: {len(found)} of {len(found)} as offline, {right / len(found):.1%} right")


async def check_request(version: str, port: int) -> None:
    """`mosquitto_rr`: a request with a response topic, which MQTT 5 has; as text, since its -f sends nothing."""
    image = np.load(IMAGES)["image"][0].reshape(1, 1, 8, 8)
    line = ["mosquitto_rr", "-p", str(port), "-V", "mqttv5", "-q", "1", "-W", "10"]
    line += ["-t", "mesh/in/numbers/asker", "-e", "my/answer", "-m", json.dumps(image.reshape(-1).tolist())]
    done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (scores,) = onnxruntime.InferenceSession(DIGITS).run(None, {"image": image})
    assert told.get("label") == str(scores.argmax()), told
    print(f"mosquitto_rr: answered (gateway on MQTT {version})")


async def check_broken(ear: Ear, port: int) -> None:
    """Each is told on its own error topic, and the next message is answered."""
    broken = [b"junk", jpeg(np.zeros((8, 8)))[:100], bytes(1000)]
    await publish(port, "mesh/in/digits/broken", broken)
    await publish(port, "mesh/in/nothing/broken", [b"x"])
    topic = "mesh/error/digits/broken"
    await ear.until(lambda: len(ear.heard.get(topic, [])) == len(broken), "every broken message is told")
    await ear.until(lambda: "mesh/error/nothing/broken" in ear.heard, "an unknown pipeline is told")
    await publish(port, "mesh/in/digits/broken", [jpeg(np.load(IMAGES)["image"][0])])
    await ear.until(lambda: "mesh/out/digits/broken" in ear.heard, "the source goes on")
    codes = {json.loads(told)["error"]["code"] for told in ear.heard[topic]}
    assert codes == {"source-unreadable"}, codes
    print(f"{len(broken)} broken messages and an unknown pipeline: told, and the source goes on")


async def check_overhead(ear: Ear, port: int, addresses: list[str]) -> None:
    """From publishing to the result's arrival, in turns with a direct call with the picture decoded."""
    picture = jpeg(np.load(IMAGES)["image"][0])
    image = np.load(IMAGES)["image"][0].reshape(1, 1, 8, 8)
    topic = "mesh/out/digits/timed"
    direct, ours = [], []
    async with (
        mesh.connect(peers=addresses, mdns=False) as connection,
        aiomqtt.Client("127.0.0.1", port, identifier="timed", socket_options=AT_ONCE) as client,
    ):
        model = await connection.model("digits")
        for number in range(110):
            began = time.perf_counter()
            await model.run({"image": image})
            middle = time.perf_counter()
            await client.publish("mesh/in/digits/timed", picture, qos=0)
            await ear.until(lambda number=number: len(ear.heard.get(topic, [])) > number, "it is answered")
            if number >= 10:
                direct.append(middle - began)
                ours.append(time.perf_counter() - middle)
    added = (statistics.median(ours) - statistics.median(direct)) * 1e3
    assert added <= OVERHEAD_TARGET_MS, f"{added:.1f} ms"
    told = f"direct p50 {statistics.median(direct) * 1e3:.1f} ms, MQTT p50 {statistics.median(ours) * 1e3:.1f} ms"
    print(f"{told}: added {added:.1f} ms (target {OVERHEAD_TARGET_MS:g})")


async def check_discovery(port: int) -> None:
    """Two daemons that only a broker makes known to each other and to commands; one that is killed is taken back."""
    environment = {**os.environ, "MESH_MQTT": f"127.0.0.1:{port}"}

    async def names() -> set[str]:
        line = [*MESH, "nodes", "--no-mdns", "--json"]
        work = asyncio.to_thread(
            subprocess.run, line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        done = await work
        return {node["name"] for node in json.loads(done.stdout).get("nodes", ()) if node["state"] != "lost"}

    async def until(wanted: set[str]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while (found := await names()) != wanted:
            assert time.monotonic() < deadline, f"{found}, not {wanted}"

    with tempfile.TemporaryDirectory() as folder:
        line = [*MESH, "node", "--no-mdns", "--listen", "127.0.0.1:0"]
        daemons = [
            subprocess.Popen(  # noqa: ASYNC220
                [*line, "--name", name, "--data-dir", f"{folder}/{name}"],
                cwd=ROOT,
                env=environment,
                stderr=subprocess.DEVNULL,
            )
            for name in ("mqtt-one", "mqtt-two")
        ]
        try:
            await until({"mqtt-one", "mqtt-two"})
            daemons[0].kill()
            await until({"mqtt-two"})
        finally:
            for daemon in daemons:
                daemon.terminate()
            for daemon in daemons:
                await asyncio.to_thread(daemon.wait, LIMIT_S)
    print("two daemons found each other through the broker, and one that was killed is taken back")


@contextlib.contextmanager
def ended(broker: Mosquitto, gateway: Gateway) -> Iterator[None]:
    try:
        yield
    finally:
        for each in (gateway, broker):
            if each.process is not None and each.process.poll() is None:
                each.end(signal.SIGTERM)


@contextlib.asynccontextmanager
async def listening(port: int) -> AsyncIterator[Ear]:
    ear = Ear(port)
    task = asyncio.ensure_future(ear.listen())
    try:
        await ear.until(lambda: "listening" in ear.heard, "the broker is heard")
        yield ear
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def check(version: str, folder: Path, addresses: list[str], is_long: bool) -> None:
    port = free_port()
    await asyncio.to_thread(folder.mkdir)
    file = folder / "pipelines.toml"
    file.write_text(PIPELINES.format(port=port, version=version))
    broker, gateway = Mosquitto(folder, port), Gateway(file, addresses, folder / "gateway.log")
    with ended(broker, gateway):
        broker.start()
        async with listening(port) as ear:
            gateway.start()
            await ear.until(lambda: ear.heard.get("mesh/bridge/state", [b""])[-1] == b"online", "the gateway is there")
            await check_pictures(ear, port)
            await check_broken(ear, port)
            if version == "5":
                await check_discovery(port)
                await check_request(version, port)
            if is_long:
                await check_sound(ear, port, folder.parent / "tones_test.npz", folder.parent / "tones.onnx")
                await check_overhead(ear, port, addresses)
                await check_kills(ear, port, broker, gateway)
                await check_windows(ear, port, broker, gateway)
        if is_long:
            await asyncio.to_thread(broker.end, signal.SIGTERM)
            await check_reconnects(port)  # with nobody else left to call again
        await asyncio.to_thread(gateway.end, signal.SIGTERM)
    talk = (folder / "gateway.log").read_text()
    assert "Traceback" not in talk, talk


async def main() -> None:
    with vanishing_folder("check-mqtt-") as folder:
        subprocess.run([sys.executable, ROOT / "scripts" / "train_tones.py", "--out", folder.path], check=True)  # noqa: ASYNC221
        async with local_nodes(2, folder) as daemons:
            addresses = [daemon.address for daemon in daemons]
            async with mesh.connect(peers=addresses, mdns=False) as connection:
                await connection.deploy(DIGITS, name="digits", stages=2)
                await connection.deploy(folder.path / "tones.onnx", name="tones")
            line = [*MESH, "pipeline", "check", "--no-mdns", "--peer", addresses[0], "--peer", addresses[1]]
            text = folder.path / "pipelines.toml"
            text.write_text(PIPELINES.format(port=1, version="5"))
            subprocess.run([*line, str(text)], check=True, cwd=ROOT)  # noqa: ASYNC221
            for version, is_long in (("5", False), ("3.1.1", True)):
                print(f"MQTT {version}:", flush=True)
                await check(version, folder.path / f"mqtt-{version}", addresses, is_long)
    print("ok: sensors on MQTT are judged as offline, and nothing accepted was lost")


asyncio.run(main())
