"""Each check on a device with which nothing is wrong but what it looks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.core.fleet import Provider
from mesh.doctor.checks import CHECKS, examine
from mesh.doctor.facts import DiskFacts, Facts, InterfaceFacts, Listener, MulticastTrial, SilentPeer, Throttling
from mesh.doctor.findings import Severity, is_healthy
from mesh.doctor.mesh_checks import is_one_process
from mesh.doctor.port_checks import is_ours
from tests.doctor.doctor_facts import ATTIC, DOCKER, ETHERNET, HALL, LOOPBACK, WELL, only, well_but, wrong


def test_all_is_well() -> None:
    assert wrong(WELL) == []
    assert {finding.check for finding in examine(WELL)} == CHECKS.keys() - {"bridges"}


def test_nothing_known_is_no_reason_to_fail() -> None:
    assert is_healthy(examine(Facts()))


# Network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"carries_multicast": False, "trial": None}, Severity.BROKEN, ("carries no multicast", "multicast on")),
        ({"trial": MulticastTrial("Operation not permitted")}, Severity.BROKEN, ("not permitted", "firewall")),
        ({"trial": MulticastTrial()}, Severity.BROKEN, ("does not come back", "incoming UDP port 5353")),
        ({"trial": MulticastTrial(heard_itself=True)}, Severity.WARNING, ("nobody else answers", "--peer")),
        ({"is_up": False}, Severity.NOTE, ("switched off", "ip link set eth0 up")),
    ],
)
def test_an_interface_without_multicast_is_named(
    changes: dict[str, object], severity: Severity, words: tuple[str, str]
) -> None:
    found = only(well_but(interfaces=(LOOPBACK, replace(ETHERNET, **changes))))
    assert (found.check, found.severity, found.subject) == ("multicast", severity, "eth0 (192.168.1.10)")
    assert words[0] in found.message and words[1] in found.fix


def test_multicast_that_the_network_blocks_is_told_by_a_node_that_only_answers_calls() -> None:
    silent_network = replace(ETHERNET, trial=MulticastTrial(heard_itself=True))
    found = only(well_but(interfaces=(LOOPBACK, silent_network), nodes=(HALL, replace(ATTIC, is_announced=False))))
    assert found.severity is Severity.BROKEN
    assert "multicast is blocked: calls reach attic at 192.168.1.11:50071" in found.message


@pytest.mark.parametrize("address", ["192.168.2.11:50071", "192.168.1.10:50071", "attic.local:50071", "[fe80::1]:1"])
def test_a_node_elsewhere_says_nothing_about_an_interface(address: str) -> None:
    assert wrong(well_but(nodes=(HALL, replace(ATTIC, is_announced=False, address=address)))) == []


def test_one_broken_interface_does_not_hide_behind_another() -> None:
    wlan = InterfaceFacts("wlan0", "10.0.0.4", 24, trial=MulticastTrial())
    assert only(well_but(interfaces=(LOOPBACK, ETHERNET, wlan))).subject == "wlan0 (10.0.0.4)"


def test_a_machine_without_any_network_is_told() -> None:
    found = only(well_but(interfaces=(replace(LOOPBACK, is_used=True, trial=MulticastTrial(heard_itself=True)),)))
    assert "no interface beyond loopback" in found.message


def test_what_keeps_mdns_off_the_machine_is_told() -> None:
    found = only(well_but(mdns_error="mDNS cannot use port 5353 on eth0: Address already in use"))
    assert found.severity is Severity.BROKEN and "avahi" in found.fix


def test_a_bridge_of_containers_is_named_and_no_fault() -> None:
    found = only(well_but(interfaces=(LOOPBACK, ETHERNET, DOCKER)))
    assert (found.check, found.severity, found.subject) == ("bridges", Severity.NOTE, "docker0 (172.17.0.0/16)")
    assert "--network host" in found.fix


def test_a_bridge_that_mdns_uses_is_a_warning() -> None:
    used = replace(DOCKER, name="podman0", is_used=True, is_skipped=False, trial=ETHERNET.trial)
    found = only(well_but(interfaces=(LOOPBACK, ETHERNET, used)))
    assert (found.severity, found.subject) == (Severity.WARNING, "podman0 (172.17.0.0/16)")


def test_a_bridge_over_the_addresses_of_the_network_is_broken() -> None:
    over = replace(DOCKER, address="192.168.0.1")
    note, overlap = wrong(well_but(interfaces=(LOOPBACK, ETHERNET, over)))
    assert (note.severity, overlap.severity) == (Severity.NOTE, Severity.BROKEN)
    assert overlap.subject == "eth0 and docker0" and "192.168.1.0/24" in overlap.message


# Ports --------------------------------------------------------------------------------------------


def test_a_taken_port_is_named_with_who_has_it() -> None:
    server = Listener(8000, "0.0.0.0", 123, ("python3", "-m", "http.server", "8000"))
    found = only(well_but(listeners=(server,)))
    assert (found.severity, found.subject) == (Severity.BROKEN, "port 8000")
    assert "process 123: python3 -m http.server 8000" in found.message and "--http" in found.fix


def test_a_port_of_another_users_process_is_named_too() -> None:
    found = only(well_but(listeners=(Listener(50070, "127.0.0.1"),)))
    assert "another user" in found.message and "mesh coordinator --listen" in found.fix


def test_a_port_on_which_a_node_answers_is_not_taken() -> None:
    assert wrong(well_but(listeners=(Listener(50071, "192.168.1.10"),))) == []


@pytest.mark.parametrize(
    ("command", "is_mesh"),
    [
        (("/opt/venv/bin/python", "/opt/venv/bin/mesh", "gateway", "--insecure"), True),
        (("python3", "-m", "nodes", "gateway"), True),
        (("python3", "-m", "nodes", "node"), False),
        (("mesh-gateway",), False),
        (("gateway", "mesh"), False),
        ((), False),
    ],
)
def test_our_own_daemons_are_known_by_their_command(command: tuple[str, ...], is_mesh: bool) -> None:
    assert is_ours(Listener(8000, "0.0.0.0", 1, command), "gateway") is is_mesh


# Nodes --------------------------------------------------------------------------------------------


def test_a_cloned_id_is_named_once_with_everyone_who_has_it() -> None:
    twin = replace(ATTIC, node_id=HALL.node_id, twin_of=HALL.address)
    found = only(well_but(nodes=(replace(HALL, twin_of=ATTIC.address), twin)))
    assert (found.check, found.severity) == ("identities", Severity.BROKEN)
    assert "aaaaaaaa" in found.message
    assert "attic at 192.168.1.11:50071, hall at 192.168.1.10:50071" in found.message
    assert "identity.pem" in found.fix


def test_the_cpu_time_of_one_process_never_falls() -> None:
    assert is_one_process([1.0, 1.0, 1.5, 1.75])
    assert not is_one_process([1.0, 7.0, 1.001, 7.001])


@pytest.mark.parametrize(("is_announced", "words"), [(True, "is announced"), (False, "does not answer")])
def test_who_does_not_answer_is_named(is_announced: bool, words: str) -> None:
    found = only(well_but(silent=(SilentPeer("shed", ("192.168.1.12:50071",), is_announced),)))
    assert (found.severity, found.subject) == (Severity.BROKEN, "shed")
    assert words in found.message and "192.168.1.12:50071" in found.message


@pytest.mark.parametrize(
    ("ahead_s", "severity", "words"),
    [(3.0, Severity.WARNING, "3.0 s ahead"), (-7200.0, Severity.BROKEN, "7200.0 s behind")],
)
def test_a_wrong_clock_is_named(ahead_s: float, severity: Severity, words: str) -> None:
    found = only(well_but(nodes=(HALL, replace(ATTIC, clock_ahead_s=ahead_s))))
    assert (found.check, found.severity, found.subject) == ("clocks", severity, "attic")
    assert words in found.message and "timedatectl" in found.fix


def test_a_clock_that_is_not_well_known_is_not_called_wrong() -> None:
    assert wrong(well_but(nodes=(HALL, replace(ATTIC, clock_ahead_s=3.0, clock_error_s=2.5)))) == []


def test_a_clock_that_nobody_keeps_is_noted() -> None:
    assert only(well_but(clock_is_set=False)).subject == "this machine"


def test_different_versions_are_noted() -> None:
    assert "0.4.0: attic; 0.5.0: hall" in only(well_but(nodes=(HALL, replace(ATTIC, version="0.4.0")))).message


# The device ---------------------------------------------------------------------------------------


def test_a_runtime_that_crashes_is_broken_and_an_accelerator_without_driver_is_not() -> None:
    crash = Provider("CPUExecutionProvider", False, "illegal instruction")
    assert only(well_but(providers=(crash,))).severity is Severity.BROKEN
    cuda = Provider("CUDAExecutionProvider", False, "libcublas.so.12: no such file")
    found = only(well_but(providers=(*WELL.providers, cuda)))
    assert found.severity is Severity.WARNING and "libcublas" in found.message


def test_a_provider_that_never_works_here_is_not_mentioned() -> None:
    assert wrong(well_but(providers=(*WELL.providers, Provider("AzureExecutionProvider", False, "no")))) == []


def test_a_node_without_any_provider_is_named() -> None:
    crash = Provider("CPUExecutionProvider", False, "illegal instruction")
    assert only(well_but(nodes=(HALL, replace(ATTIC, providers=(crash,))))).subject == "attic"


def test_a_sensor_client_needs_no_runtime() -> None:
    assert only(well_but(providers=(), runtime_version="")).severity is Severity.NOTE


@pytest.mark.parametrize(
    ("state", "severity", "subject"),
    [
        (Throttling(hottest_celsius=82.0, critical_celsius=85.0), Severity.WARNING, "temperature"),
        (Throttling(throttled_events=12), Severity.WARNING, "temperature"),
        (Throttling(firmware_flags=0x1), Severity.BROKEN, "firmware"),
        (Throttling(firmware_flags=0x40000), Severity.WARNING, "firmware"),
        (Throttling(frequency_limit_share=0.6), Severity.WARNING, "frequency"),
        (Throttling(governor="powersave", frequency_limit_share=0.4), Severity.WARNING, "frequency"),
        (Throttling(quota_stopped_share=0.5), Severity.NOTE, "quota"),
    ],
)
def test_what_slows_the_processor_down_is_named(state: Throttling, severity: Severity, subject: str) -> None:
    found = only(well_but(throttling=state))
    assert (found.check, found.severity, found.subject) == ("throttling", severity, subject)


def test_a_warm_processor_is_fine() -> None:
    state = Throttling(60.0, 85.0, 1.0, "powersave", firmware_flags=0, quota_stopped_share=0.02)
    assert wrong(well_but(throttling=state)) == []


@pytest.mark.parametrize(
    ("changes", "severity", "words"),
    [
        ({"is_writable": False}, Severity.BROKEN, "cannot be written"),
        ({"available_bytes": 1 << 20}, Severity.BROKEN, "models cannot be stored"),
        ({"available_inodes": 0}, Severity.BROKEN, "only 0 more files"),
        ({"available_bytes": 500 << 20}, Severity.WARNING, "only 0.5 GiB"),
    ],
)
def test_a_disk_without_room_is_named(changes: dict[str, object], severity: Severity, words: str) -> None:
    disk = DiskFacts("/var/lib/mesh", 20 << 30, 30 << 30, True, 100_000)
    found = only(well_but(disk=replace(disk, **changes)))
    assert (found.check, found.severity, found.subject) == ("disk", severity, "/var/lib/mesh")
    assert words in found.message
