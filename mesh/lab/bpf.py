"""Classic BPF programs for `tc filter ... bpf da bytecode`: they drop packets. Pure.

In direct-action mode a program's return value is the verdict. The text form is the number of instructions,
then "code jump-true jump-false constant" of each, separated by commas.
Sources: Linux uapi `linux/filter.h`, `linux/bpf_common.h`, `linux/pkt_cls.h`; tc-bpf(8).
"""

from __future__ import annotations

PASS, DROP = 0xFFFFFFFF, 2
"""TC_ACT_UNSPEC (whatever would happen without us) and TC_ACT_SHOT."""

LOAD_WORD = 0x20
"""BPF_LD | BPF_W | BPF_ABS."""

JUMP_IF_AT_LEAST = 0x35
"""BPF_JMP | BPF_JGE | BPF_K."""

RETURN = 0x06
"""BPF_RET | BPF_K."""

RANDOM_WORD = 0xFFFFF000 + 56
"""SKF_AD_OFF + SKF_AD_RANDOM: an address that reads as a random 32-bit number."""

Instruction = tuple[int, int, int, int]


def drop_all() -> str:
    return encode([(RETURN, 0, 0, DROP)])


def drop_share(share: float) -> str:
    """Drops each packet with the probability `share` (0 to 1), independently."""
    threshold = round(share * 2**32)
    if threshold >= 2**32:
        return drop_all()
    return encode(
        [
            (LOAD_WORD, 0, 0, RANDOM_WORD),
            (JUMP_IF_AT_LEAST, 1, 0, threshold),
            (RETURN, 0, 0, DROP),
            (RETURN, 0, 0, PASS),
        ]
    )


def encode(program: list[Instruction]) -> str:
    return ",".join([str(len(program)), *(" ".join(str(part) for part in each) for each in program)])
