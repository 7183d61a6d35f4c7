"""What a board, or its processor, calls itself: devices with one name and one share of it are taken as equally fast.

Boards say it in the device tree ("Raspberry Pi 4 Model B Rev 1.4"), PCs in /proc/cpuinfo ("AMD Ryzen 5 3600").
`read_hardware_name` reads the files below a root folder, so that tests hand in machines that they do not have.
Sources: proc(5), Linux `Documentation/ABI/testing/sysfs-firmware-ofw`.
"""

from __future__ import annotations

from pathlib import Path

MAX_FILE_BYTES = 64 << 10
"""The first processors of /proc/cpuinfo, which name the same model as all others."""

MAX_NAME_CHARACTERS = 100

_KEYS = ("Model", "model name", "Hardware", "cpu model", "uarch")
"""Of /proc/cpuinfo on ARM boards, PCs, older ARM boards, MIPS and RISC-V."""


def read_hardware_name(root: Path = Path("/")) -> str:
    """One printable line; empty where nothing says it."""
    board = _read(root / "proc/device-tree/model").rstrip("\0")
    return _tidy(board) or parse_cpuinfo(_read(root / "proc/cpuinfo"))


def parse_cpuinfo(text: str) -> str:
    """The most telling name among the lines of `/proc/cpuinfo`; empty where there is none."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), _tidy(value))
    return next((found[key] for key in _KEYS if found.get(key)), "")


def _tidy(text: str) -> str:
    line = " ".join(text.split())
    return "".join(character for character in line if character.isprintable())[:MAX_NAME_CHARACTERS]


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""  # most machines have one of the files
