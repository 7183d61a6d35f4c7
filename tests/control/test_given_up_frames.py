"""A frame whose time was up may still be in the mesh when its stream ends; closing its path gives its place back."""

from __future__ import annotations

from mesh.core.frame import Outcome
from tests.control.test_client_stream import LOST, make


def test_a_late_frame_holds_its_place_until_its_path_is_closed() -> None:
    mesh = make(window=1, deadline_s=1.0, is_ordered=False)
    mesh.offer()
    mesh.now = 2.0
    mesh.stream.tick(mesh.now)
    mesh.stream.finish()
    mesh.stream.break_off(LOST, mesh.now)
    assert mesh.take() == [(0, Outcome.LATE)]
    assert (mesh.stream.is_over, mesh.stream.error) == (True, None), "everything was answered before it broke"
    assert mesh.stream.in_flight == 1, "a node may still compute it"
    mesh.stream.lose_path(1, LOST)
    assert mesh.stream.in_flight == 0
