"""The packet-dropping programs, run on a small interpreter of classic BPF."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.lab import bpf


def run(text: str, chance: int) -> int:
    """The verdict of the program when the random number is `chance`."""
    count, *parts = text.split(",")
    program = [tuple(int(word) for word in part.split()) for part in parts]
    assert len(program) == int(count)
    accumulator, position = 0, 0
    while True:
        code, jump_true, jump_false, constant = program[position]
        position += 1
        if code == 0x20:  # ld
            assert constant == 2**32 - 4096 + 56, "the address of the random number"
            accumulator = chance
        elif code == 0x35:  # jge
            position += jump_true if accumulator >= constant else jump_false
        elif code == 0x06:  # ret
            return constant
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


def test_drop_all() -> None:
    assert run(bpf.drop_all(), 12345) == bpf.DROP
    assert bpf.drop_share(1.0) == bpf.drop_all()


@given(st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
def test_drops_the_share_of_all_chances(share: float, chance: int) -> None:
    dropped = run(bpf.drop_share(share), chance) == bpf.DROP
    assert dropped == (chance < round(share * 2**32))


@pytest.mark.parametrize("share", [0.0, 1e-12, 0.3, 0.999999999999])
def test_constants_fit_their_fields(share: float) -> None:
    for part in bpf.drop_share(share).split(",")[1:]:
        code, jump_true, jump_false, constant = (int(word) for word in part.split())
        assert code < 2**16
        assert max(jump_true, jump_false) < 2**8
        assert 0 <= constant < 2**32
