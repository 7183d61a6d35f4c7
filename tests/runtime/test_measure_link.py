"""What measuring a link makes of echoes that take known times."""

from __future__ import annotations

from itertools import count

import pytest

from mesh.core.fleet import BYTE_SECONDS, MESSAGE_SECONDS, Handling, Link
from mesh.core.report import Echo
from mesh.runtime.costing import FRAME_MESSAGES, handling_of
from mesh.runtime.measure import measure_link
from tests.planning.instances import node_ids

ONE, TWO, THREE = node_ids(3)


class Peer:
    """Takes CPU time here and there for every call and byte; now and then something else takes a lot."""

    def __init__(self) -> None:
        self.here = self.there = 5.0
        self._calls = count()

    async def echo(self, payload: bytes) -> Echo:
        disturbance = 0.5 if next(self._calls) in (2, 9) else 0.0
        self.here += 0.002 + 1e-9 * len(payload) + disturbance
        self.there += 0.004 + 8e-9 * len(payload) + disturbance
        return Echo(len(payload), self.there)


async def test_cpu_time_of_both_ends_is_told_apart() -> None:
    peer = Peer()
    link = await measure_link(peer.echo, lambda: peer.here)
    assert link.sending is not None and link.receiving is not None
    assert link.sending.message_seconds == pytest.approx(0.001)
    assert link.sending.byte_seconds == pytest.approx(1e-9)
    assert link.receiving.message_seconds == pytest.approx(0.002)
    assert link.receiving.byte_seconds == pytest.approx(8e-9)
    assert link.sending.measured and link.receiving.measured


def test_a_share_of_a_core_takes_as_much_longer() -> None:
    link = Link(0.0, 1.0, sending=Handling(0.001, 1e-9, True), receiving=Handling(0.003, 8e-9, True))
    links = {(ONE, TWO): link, (TWO, ONE): link}
    whole, half, many = (handling_of(ONE, cores, links) for cores in (1.0, 0.5, 8.0))
    assert whole == many
    assert whole.seconds(100, sent=True) == pytest.approx(FRAME_MESSAGES * 0.002 + 1e-7)
    assert whole.seconds(100, sent=False) == pytest.approx(FRAME_MESSAGES * 0.002 + 8e-7)
    assert half.seconds(100, sent=False) == pytest.approx(2 * whole.seconds(100, sent=False))
    unknown = handling_of(THREE, 0.5, links)
    assert not unknown.measured
    assert unknown.seconds(10, sent=True) == pytest.approx(2 * (MESSAGE_SECONDS + 10 * BYTE_SECONDS))
