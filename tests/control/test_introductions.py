"""Who introduced themselves is known for a while, and not for ever."""

from __future__ import annotations

import pytest

from mesh.control.introductions import FORGET_AFTER_S, MAX_INTRODUCED, Introductions
from mesh.core.ids import NodeId
from mesh.errors import Overloaded


def node(number: int) -> NodeId:
    return NodeId(f"{number:032x}")


def test_is_known_until_it_has_been_silent_too_long() -> None:
    introductions = Introductions()
    introductions.add(node(1), "one", "10.0.0.1:50071", now=0.0)
    introductions.add(node(2), "two", "10.0.0.2:50071", now=FORGET_AFTER_S)
    assert {peer.name for peer in introductions.known(FORGET_AFTER_S)} == {"one", "two"}
    assert {peer.name for peer in introductions.known(FORGET_AFTER_S + 0.1)} == {"two"}


def test_a_new_introduction_renews_and_moves() -> None:
    introductions = Introductions()
    introductions.add(node(1), "one", "10.0.0.1:50071", now=0.0)
    introductions.add(node(1), "one", "10.0.0.9:50071", now=FORGET_AFTER_S)
    (peer,) = introductions.known(2 * FORGET_AFTER_S)
    assert peer.addresses == ("10.0.0.9:50071",)


def test_no_more_than_the_limit_but_the_known_may_renew() -> None:
    introductions = Introductions()
    for number in range(MAX_INTRODUCED):
        introductions.add(node(number), f"n{number}", "10.0.0.1:50071", now=0.0)
    with pytest.raises(Overloaded):
        introductions.add(node(MAX_INTRODUCED), "late", "10.0.0.2:50071", now=1.0)
    introductions.add(node(0), "n0", "10.0.0.1:50071", now=1.0)
    introductions.add(node(MAX_INTRODUCED), "late", "10.0.0.2:50071", now=FORGET_AFTER_S + 0.5)
