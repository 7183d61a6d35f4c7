"""Sensors on MQTT: each message to its pipeline, each result or error to its topic, nothing lost silently.

Sources are worked on at once, the messages of one source in their order. Where a source sends faster than it is
answered, messages of QoS 0 are dropped, the oldest first, which is told on its error topic; those of QoS 1 wait, here
and at the broker, which sends no more than it has acknowledgements for. A message of QoS 1 is acknowledged when its
results, its error or its drop have reached the broker, and each of its samples was in a window that did; until then a
gateway that is killed gets it again. Windows of many messages are the exception: a broker that waits for too many
acknowledgements sends nothing more, so of those that only wait for their window the oldest are acknowledged early.

A message that comes again after a lost connection must not enter its source's window twice: what was made of it is
kept until then (`mqtt_redelivery`), and told once more. A broker that was killed may have forgotten it, and with it
what this gateway could not tell any more: what does not come again soon is told all the same.

Made by `mesh pipeline run`, which hands in what processes a message.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.errors import MeshError, NodeLost, NotFound, Overloaded, Refused
from mesh.gateways.contract import trace_context
from mesh.gateways.mqtt_connection import Broker, MqttConnection, Sample
from mesh.gateways.mqtt_redelivery import Judged, Redelivery, Told
from mesh.gateways.mqtt_topics import ONLINE, Topics, home_assistant_device
from mesh.gateways.statuses import line_of, told_of
from mesh.runtime.supervise import Supervisor

MAX_WAITING = 16
"""Messages of QoS 0 of one source; what is older than so many says little about now."""

MAX_WAITING_LOSSLESS = 2048
"""Messages of QoS 1 of one source. Brokers send no more than they have acknowledgements for, by default some 20 or
64; this is for one that does."""

MAX_SOURCES = 1024
"""That are worked on at once."""

MAX_JUDGED_AT_ONCE = 64
"""Messages: below what `inference` takes, whose refusal would be an error for a message that only had to wait. Some
brokers (Mosquitto 2.0) send many times what they have acknowledgements for."""

MAX_WAITING_BYTES = 128 << 20
"""Of all sources."""

MAX_HELD = 12
"""Acknowledgements that wait for a window to be full. Brokers send about 20 messages ahead of them by default."""

MAX_HELD_VERSION_5 = 48
"""With MQTT 5 it is `MAX_UNACKNOWLEDGED` that they send ahead."""

MAX_UNTOLD = 1024
"""Messages whose results the broker did not take; of more, the oldest are left to the broker."""

RETELL_S = 2.0
"""From a connection's beginning; what a broker sends again comes at once."""

INFO_EVERY_S = 10.0

AnswerMessage = Callable[[str, bytes, str, str], Awaitable[Sequence[bytes | MeshError]]]
"""(source, payload, id of the message, trace context) to results, each a JSON document, or an error for what has none.
Raises `MeshError`s."""


@dataclass(frozen=True, slots=True)
class Served:
    """A pipeline as MQTT sees it."""

    process: AnswerMessage
    output_kind: str
    holds: Callable[[str, str], bool] = lambda source, message_id: False
    """Whether a sample of the message waits for its first window."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A message and what was made of it."""

    key: tuple[str, str]
    sample: Sample
    judged: Judged


@dataclass(slots=True)
class _Source:
    waiting: deque[Sample] = field(default_factory=deque)


class MqttGateway:
    """`run` until cancelled."""

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        pipelines: Mapping[str, Served],
        tasks: Supervisor,
        say: Callable[[str], None],
        home_assistant: str = "",
    ) -> None:
        self._topics = topics
        self._pipelines = pipelines
        self._tasks = tasks
        self._home_assistant = home_assistant
        self._ready_topic = f"{home_assistant}/status" if home_assistant else ""
        subscriptions = (topics.samples, *([self._ready_topic] if home_assistant else []))
        self._connection = MqttConnection(broker, topics, subscriptions, self._take, self._begin_connection, say)
        self._working: dict[tuple[str, str], _Source] = {}
        self._announced: dict[tuple[str, str], str] = {}
        """Sources that Home Assistant knows of, with the kind of their pipeline's output."""
        self._waiting_bytes = 0
        self._places = asyncio.Semaphore(MAX_JUDGED_AT_ONCE)
        self._redelivery = Redelivery()
        self._held: OrderedDict[str, _Held] = OrderedDict()
        """By the message's id, in the order of their coming."""
        self._untold: OrderedDict[str, _Held] = OrderedDict()
        """By the message's id: what is to be told when there is a broker again."""
        self._max_held = MAX_HELD_VERSION_5 if broker.is_version_5 else MAX_HELD
        self._number = 0
        self._run_id = secrets.token_hex(4)
        """Numbers begin anew with each run, and ids must not."""
        self.counted: Counter[str] = Counter()
        """samples, results, errors and drops by reason."""

    async def run(self) -> None:
        telling = self._tasks.spawn(self._tell_info(), "MQTT gateway: counters")
        try:
            await self._connection.run()
        finally:
            telling.cancel()

    # In -------------------------------------------------------------------------------------------

    def _take(self, sample: Sample) -> None:
        """Never waits: the connection goes on reading, so that a broker never takes this gateway for dead."""
        if sample.topic == self._ready_topic:
            sample.acknowledge()
            if sample.payload == ONLINE.encode():
                self._tasks.spawn(self._announce_again(), "MQTT gateway: Home Assistant has started")
            return
        key = self._topics.read_sample(sample.topic)
        if key is None:
            self.counted["refused topics"] += 1
            sample.acknowledge()
            return
        self.counted["samples"] += 1
        source = self._working.get(key)
        if source is None:
            source = self._working[key] = _Source()
            self._tasks.spawn(self._work(key, source), f"MQTT gateway: {'/'.join(key)}")
        source.waiting.append(sample)
        self._waiting_bytes += len(sample.payload)
        dropped = self._overflow(source.waiting)
        if dropped is not None:
            self._waiting_bytes -= len(dropped.payload)
            self.counted["dropped: overflow"] += 1
            error = Overloaded("dropped: the source sends faster than it is answered")
            judged = Judged("", [self._error(key, error)])
            self._tasks.spawn(self._deliver(key, dropped, judged), "MQTT gateway: a drop is told")

    def _overflow(self, waiting: deque[Sample]) -> Sample | None:
        """The oldest message of QoS 0 that is one too many, taken out; of QoS 1 only where there is no room at all."""
        is_full = len(self._working) > MAX_SOURCES or self._waiting_bytes > MAX_WAITING_BYTES
        live = [sample for sample in waiting if not sample.qos]
        if live and (is_full or len(live) > MAX_WAITING):
            waiting.remove(live[0])
            return live[0]
        return waiting.popleft() if is_full or len(waiting) > MAX_WAITING_LOSSLESS else None

    async def _work(self, key: tuple[str, str], source: _Source) -> None:
        """Until nothing of this source waits."""
        try:
            while source.waiting:
                async with self._places:
                    if not source.waiting:
                        break  # what waited was dropped, and told to be
                    sample = source.waiting.popleft()
                    self._waiting_bytes -= len(sample.payload)
                    judged = await self._judge_once(key, sample)
                await self._deliver(key, sample, judged)
        finally:
            del self._working[key]

    async def _judge_once(self, key: tuple[str, str], sample: Sample) -> Judged:
        judged = self._redelivery.recall(key, sample)
        if judged is None:
            self._number += 1
            identifier = f"{self._run_id}-{self._number}"
            return Judged(identifier, await self._judge(key, sample, identifier))
        self.counted["came again"] += 1
        self._untold.pop(judged.identifier, None)
        return judged

    async def _judge(self, key: tuple[str, str], sample: Sample, identifier: str) -> list[Told]:
        pipeline, source = key
        try:
            served = self._pipelines.get(pipeline)
            if served is None:
                raise NotFound(f"there is no pipeline {pipeline!r}", hint=f"there are: {', '.join(self._pipelines)}")
            if sample.is_retained:
                raise Refused("dropped: a retained message is older than anybody can tell", hint="publish unretained")
            results = await served.process(source, sample.payload, identifier, trace_context(sample.traceparent))
        except Exception as error:  # whatever it is, it ends this message alone
            return [self._error(key, told_of(error))]
        topic = self._topics.result(pipeline, source)
        return [self._error(key, result) if isinstance(result, MeshError) else (topic, result) for result in results]

    async def _deliver(self, key: tuple[str, str], sample: Sample, judged: Judged) -> None:
        """Publish what is told of a message; acknowledge it, and those before it that waited for its samples."""
        result_topic = self._topics.result(*key)
        try:
            for topic, document in judged.told:
                if topic == result_topic:
                    await self._introduce(key, self._pipelines[key[0]].output_kind)
                await self._tell(sample, topic, document)
                self.counted["results"] += topic == result_topic
        except NodeLost:
            self.counted["unpublished"] += 1  # and not acknowledged: the broker sends it again
            self._redelivery.keep(key, sample, judged)
            if sample.qos and judged.told:
                self._untold[judged.identifier] = _Held(key, sample, judged)
                if len(self._untold) > MAX_UNTOLD:
                    self._untold.popitem(last=False)
            return
        if sample.qos and self._holds(key, judged):
            self._redelivery.keep(key, sample, judged)
            self._held[judged.identifier] = _Held(key, sample, judged)
        else:
            self._acknowledge(key, sample, judged)
        self._release(key)

    def _holds(self, key: tuple[str, str], judged: Judged) -> bool:
        served = self._pipelines.get(key[0])
        return served is not None and served.holds(key[1], judged.identifier)

    def _release(self, key: tuple[str, str]) -> None:
        """Acknowledge what need not wait any longer: of this source, and the oldest of all where too many wait."""
        for identifier, held in list(self._held.items()):
            is_surplus = len(self._held) > self._max_held
            if is_surplus or (held.key == key and not self._holds(key, held.judged)):
                del self._held[identifier]
                self._acknowledge(held.key, held.sample, held.judged)
                self.counted["acknowledged before their window"] += is_surplus

    def _acknowledge(self, key: tuple[str, str], sample: Sample, judged: Judged) -> None:
        """And keep what was made of it for when the message comes again all the same."""
        self._redelivery.keep(key, sample, judged, is_acknowledged=sample.acknowledge())

    # Out ------------------------------------------------------------------------------------------

    def _error(self, key: tuple[str, str], error: MeshError) -> Told:
        """What is told of a message that has no result, which is counted."""
        self.counted[f"error: {error.code}"] += 1
        document = {
            "pipeline": key[0],
            "source": key[1],
            "ts": time.time(),
            "error": {"code": error.code, "message": line_of(error)},
        }
        return self._topics.error(*key), json.dumps(document).encode()

    async def _tell(self, sample: Sample, topic: str, document: bytes) -> None:
        """As surely as the message itself came: a word of the broker on each would slow what may be lost anyway."""
        qos = min(1, sample.qos)
        await self._connection.publish(topic, document, qos=qos)
        if sample.response_topic and not self._topics.may_answer_at(sample.response_topic):
            self.counted["refused response topics"] += 1
        elif sample.response_topic:
            await self._connection.publish(sample.response_topic, document, correlation=sample.correlation, qos=qos)

    async def _introduce(self, key: tuple[str, str], kind: str) -> None:
        if self._home_assistant and key not in self._announced and len(self._announced) < MAX_SOURCES:
            topic, message = home_assistant_device(self._topics, self._home_assistant, *key, kind)
            await self._connection.publish(topic, message, is_retained=True)
            self._announced[key] = kind

    async def _begin_connection(self) -> None:
        self._redelivery.begin_connection()
        self._held.clear()  # all of them come again
        if self._untold:
            self._tasks.spawn(self._tell_untold(), "MQTT gateway: what could not be told")
        if self._announced:  # the broker may have forgotten; nobody waits for it, least of all who reads what comes
            self._tasks.spawn(self._announce_again(), "MQTT gateway: a connection begins")

    async def _tell_untold(self) -> None:
        """With the same ids, should it have been heard after all; it is put back where the broker is gone again."""
        await asyncio.sleep(RETELL_S)
        untold, self._untold = self._untold, OrderedDict()
        for each in untold.values():
            self.counted["told late"] += 1
            await self._deliver(each.key, each.sample, each.judged)

    async def _announce_again(self) -> None:
        for key, kind in list(self._announced.items()):
            topic, message = home_assistant_device(self._topics, self._home_assistant, *key, kind)
            try:
                await self._connection.publish(topic, message, is_retained=True)
            except NodeLost:
                return  # the next connection announces them

    async def _tell_info(self) -> None:
        told: dict[str, int] = {}
        while True:
            await asyncio.sleep(INFO_EVERY_S)
            if told == self.counted:
                continue
            try:
                message = json.dumps(dict(sorted(self.counted.items()))).encode()
                await self._connection.publish(self._topics.info, message, is_retained=True)
                told = dict(self.counted)
            except NodeLost:
                continue  # told after the next connection
