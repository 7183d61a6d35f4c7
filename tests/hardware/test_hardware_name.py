"""What boards and PCs call themselves."""

from __future__ import annotations

from pathlib import Path

from mesh.hardware.hardware_name import MAX_NAME_CHARACTERS, parse_cpuinfo, read_hardware_name

PC = "processor\t: 0\nmodel name\t: AMD Ryzen 5  3600\n\nprocessor\t: 1\nmodel name\t: other\n"
OLD_ARM = (
    "processor\t: 0\nmodel name\t: ARMv7 Processor rev 4 (v7l)\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 3\n"
)


def test_processors_and_boards_have_names() -> None:
    assert parse_cpuinfo(PC) == "AMD Ryzen 5 3600"
    assert parse_cpuinfo(OLD_ARM) == "Raspberry Pi 3"
    assert parse_cpuinfo("processor : 0\n") == ""


def test_the_device_tree_goes_first(tmp_path: Path) -> None:
    assert read_hardware_name(tmp_path) == ""
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(PC)
    (tmp_path / "proc/device-tree/model").write_bytes(b"\0")
    assert read_hardware_name(tmp_path) == "AMD Ryzen 5 3600"
    (tmp_path / "proc/device-tree/model").write_bytes(b"Raspberry Pi 4\nModel B\x01" + b"x" * 500 + b"\0")
    found = read_hardware_name(tmp_path)
    assert found.startswith("Raspberry Pi 4 Model Bx") and len(found) <= MAX_NAME_CHARACTERS and found.isprintable()


def test_this_machine_is_asked_without_an_error() -> None:
    assert read_hardware_name().isprintable()
