"""What scripts/check_mqtt does to the broker and the gateway: kills them while messages flow, and hangs up."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import aiomqtt
import numpy as np
import onnxruntime
from mqtt_parts import AT_ONCE, DIGITS, IMAGES, LIMIT_S, Ear, Gateway, Mosquitto, jpeg

LOSSLESS = 120
"""Messages of QoS 1 while broker and gateway are killed."""
UNANSWERED = 10
"""Messages that the broker holds when it is killed."""
WRITTEN_S = 1.5
"""The broker writes what it holds every second; what it accepted since then it loses when it is killed."""
WINDOWS = 30
ROWS = 8
"""Messages of a window."""
SETTLE_S = 0.5
"""From a result that is heard to its acknowledgements: they are written when the broker has said that it has it."""
ROWS_BETWEEN_RESTARTS = 30
RECONNECT_WATCH_S = 12.0
MAX_RECONNECTS = 3
"""At most one in 5 s."""


async def check_kills(ear: Ear, port: int, broker: Mosquitto, gateway: Gateway) -> None:
    """Messages that the broker accepted at QoS 1 are all answered, through a killed gateway and a killed broker."""
    picture = jpeg(np.load(IMAGES)["image"][0])
    accepted: list[str] = []
    flowing = asyncio.Event()
    flowing.set()

    async def send() -> None:
        number = 0
        while number < LOSSLESS:
            try:
                async with aiomqtt.Client("127.0.0.1", port, identifier="lossless") as client:
                    while number < LOSSLESS:
                        await flowing.wait()
                        await client.publish(f"mesh/in/digits/n{number}", picture, qos=1, timeout=5)
                        accepted.append(f"mesh/out/digits/n{number}")
                        number += 1
                        await asyncio.sleep(0.05)
            except aiomqtt.MqttError:
                await asyncio.sleep(0.3)  # the same message again: it was not accepted

    sending = asyncio.ensure_future(send())
    await ear.until(lambda: len(accepted) > LOSSLESS // 4, "messages flow")
    state = "mesh/bridge/state"
    killed_at, before = time.monotonic(), len(ear.heard[state])
    await asyncio.to_thread(gateway.end, signal.SIGKILL)
    await ear.until(lambda: len(ear.heard[state]) > before and ear.heard[state][-1] == b"offline", "offline is told")
    offline_s = time.monotonic() - killed_at
    gateway.start()
    await ear.until(lambda: ear.heard[state][-1] == b"online", "online again")
    await ear.until(lambda: len(accepted) > LOSSLESS // 2, "messages flow on")
    gateway.signal(signal.SIGSTOP)  # so that the broker holds what nobody has answered
    unanswered = len(accepted) + UNANSWERED
    await ear.until(lambda: len(accepted) >= unanswered, "messages wait at the broker")
    flowing.clear()
    await asyncio.sleep(WRITTEN_S)
    await asyncio.to_thread(broker.end, signal.SIGKILL)
    await asyncio.to_thread(broker.start)
    gateway.signal(signal.SIGCONT)
    flowing.set()
    await sending
    await ear.until(lambda: all(topic in ear.heard for topic in accepted), "all are answered")
    print(
        f"gateway and broker killed: {len(accepted)} accepted, "
        f"{sum(topic in ear.heard for topic in accepted)} answered; offline told after {offline_s:.2f} s"
    )


async def check_windows(ear: Ear, port: int, broker: Mosquitto, gateway: Gateway) -> None:
    """Pictures that come row by row, through a broker that is restarted while it waits for acknowledgements, and a
    gateway that is killed while it fills a window, in turns.

    The broker ends in an orderly way and keeps everything: what was acknowledged in vain comes again, and so do the
    rows of a window that was not told.
    """
    images = np.load(IMAGES)["image"][:WINDOWS].reshape(WINDOWS, ROWS, 8)
    rows = [json.dumps([row.tolist()]).encode() for image in images for row in image]
    topic, sent = "mesh/out/rows/scanner", 0

    def labels() -> list[str]:
        """In the order of the messages that completed the windows; what is told twice has the same id."""
        told = {document["id"]: document["label"] for document in map(json.loads, ear.heard.get(topic, []))}
        runs = list(dict.fromkeys(identifier.rpartition("-")[0] for identifier in told))
        number = {each: (runs.index(each.rpartition("-")[0]), int(each.rpartition("-")[2])) for each in told}
        return [told[identifier] for identifier in sorted(told, key=number.__getitem__)]

    while sent < len(rows):
        batch = rows[sent : sent + ROWS_BETWEEN_RESTARTS]
        async with aiomqtt.Client("127.0.0.1", port, identifier="scanner", socket_options=AT_ONCE) as client:
            for row in batch:
                await client.publish("mesh/in/rows/scanner", row, qos=1, timeout=LIMIT_S)
        sent += len(batch)
        if sent // ROWS_BETWEEN_RESTARTS % 2:
            await asyncio.to_thread(broker.end, signal.SIGTERM)
            await asyncio.to_thread(broker.start)
        else:
            full = sent // ROWS
            await ear.until(lambda: len(labels()) >= full, "every full window is answered")  # noqa: B023 - awaited here
            await asyncio.sleep(SETTLE_S)
            await asyncio.to_thread(gateway.end, signal.SIGKILL)
            await asyncio.to_thread(gateway.start)

    await ear.until(lambda: len(labels()) >= WINDOWS, "every window is answered")
    session = onnxruntime.InferenceSession(DIGITS)
    expected = [str(session.run(None, {"image": image.reshape(1, 1, 8, 8)})[0].argmax()) for image in images]
    found = labels()
    assert found == expected, list(zip(found, expected, strict=False))
    assert "mesh/error/rows/scanner" not in ear.heard, ear.last("mesh/error/rows/scanner")
    restarts = len(rows) // ROWS_BETWEEN_RESTARTS
    print(f"{len(rows)} rows in {WINDOWS} windows, broker restarted or gateway killed {restarts} times: all as offline")


async def check_reconnects(port: int) -> None:
    """A broker that hangs up at once is not run over: counted by a listener in its place."""
    count = 0

    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", port)
    await asyncio.sleep(RECONNECT_WATCH_S)
    server.close()
    await server.wait_closed()
    assert 1 <= count <= MAX_RECONNECTS, count
    print(f"a broker that hangs up: {count} connections in {RECONNECT_WATCH_S:g} s")
