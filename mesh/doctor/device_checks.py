"""This device, and what nodes tell of theirs: execution providers, throttling, disk. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mesh.core.fleet import Provider
from mesh.doctor.facts import Facts, Throttling
from mesh.doctor.findings import Finding, Severity

CPU_PROVIDER = "CPUExecutionProvider"

REMOTE_PROVIDERS = frozenset({"AzureExecutionProvider"})
"""Compiled into ordinary builds, computes elsewhere, and never on a mesh: that it does not work is no news."""

HOT_MARGIN_CELSIUS = 5.0
"""So near to its limit, a board slows down as soon as it works."""

SLOW_SHARE = 0.95
STOPPED_SHARE = 0.1
"""Of the periods of a quota: rarely stopped is what a quota is for."""

FEW_BYTES = 1 << 30
"""Below, a model of some hundred MB with its segments may not fit."""
LEAST_BYTES = 64 << 20
"""Below, hardly any model fits."""
LEAST_INODES = 100

FIRMWARE_FLAGS = {
    0: ("the supply's voltage is too low", True),
    1: ("the clock is capped", True),
    2: ("it is throttled", True),
    3: ("it is at its soft limit of temperature", True),
    16: ("the supply's voltage was too low since it was switched on", False),
    18: ("it was throttled since it was switched on", False),
}
"""Bit -> in words, and whether it is so now. Source: Raspberry Pi documentation, vcgencmd get_throttled."""

COOL_FIX = "cool it (heat sink, fan, air), or use fewer threads: mesh node --threads"
POWER_FIX = "use a supply and a cable that give the voltage under load"


def check_providers(facts: Facts) -> Iterator[Finding]:
    if not facts.runtime_version and not facts.providers:
        message = "ONNX Runtime is not installed: this device can be a sensor, and no node"
        fix = "install the extra infermesh[node] if it is to compute"
        yield Finding("providers", Severity.NOTE, "this machine", message, fix)
    else:
        yield from _judge_providers("this machine", facts.runtime_version, facts.providers)
    for node in facts.nodes:
        if node.providers and not any(provider.usable for provider in node.providers):
            yield from _judge_providers(node.name, "", node.providers)


def _judge_providers(subject: str, version: str, providers: Sequence[Provider]) -> Iterator[Finding]:
    usable = [provider.name for provider in providers if provider.usable]
    told = f"ONNX Runtime {version} computes" if version else "computes"
    if usable:
        yield Finding("providers", Severity.OK, subject, f"{told} on {', '.join(usable)}")
    for provider in providers:
        if provider.usable or provider.name in REMOTE_PROVIDERS:
            continue
        message = f"{provider.name} does not work: {provider.detail or 'no reason given'}"
        if provider.name == CPU_PROVIDER:
            fix = "install infermesh[node] with a build of ONNX Runtime for this processor (not 1.21.0 on a Pi 4)"
            yield Finding("providers", Severity.BROKEN, subject, message, fix)
        else:
            fix = "install its driver and libraries, or ignore it: the processor computes instead"
            yield Finding("providers", Severity.WARNING, subject, message, fix)


def check_throttling(facts: Facts) -> Iterator[Finding]:
    found = [*_judge_heat(facts.throttling), *_judge_pace(facts.throttling)]
    if found:
        yield from found
        return
    heat = facts.throttling.hottest_celsius
    told = "nothing slows the processor down" + (f", {heat:.0f} °C" if heat is not None else "")
    yield Finding("throttling", Severity.OK, "this machine", told)


def _judge_heat(state: Throttling) -> Iterator[Finding]:
    hottest, critical = state.hottest_celsius, state.critical_celsius
    if hottest is not None and critical is not None and hottest >= critical - HOT_MARGIN_CELSIUS:
        message = f"{hottest:.0f} °C, and it slows down at {critical:.0f} °C"
        yield Finding("throttling", Severity.WARNING, "temperature", message, COOL_FIX)
    if state.throttled_events:
        message = f"the processor slowed down for its heat {state.throttled_events} times since it was switched on"
        yield Finding("throttling", Severity.WARNING, "temperature", message, COOL_FIX)
    for bit, (words, is_now) in FIRMWARE_FLAGS.items():
        if (state.firmware_flags or 0) >> bit & 1:
            fix = POWER_FIX if bit in (0, 16) else COOL_FIX
            severity = Severity.BROKEN if is_now else Severity.WARNING
            yield Finding("throttling", severity, "firmware", f"{words}, says the firmware", fix)


def _judge_pace(state: Throttling) -> Iterator[Finding]:
    if state.governor == "powersave" and (state.frequency_limit_share or 1.0) < SLOW_SHARE:
        message = "the frequency governor is powersave: the processor stays slow"
        fix = "cpupower frequency-set -g schedutil (or ondemand, performance)"
        yield Finding("throttling", Severity.WARNING, "frequency", message, fix)
    elif state.frequency_limit_share is not None and state.frequency_limit_share < SLOW_SHARE:
        message = f"the clock is limited to {state.frequency_limit_share:.0%} of what the processor could"
        fix = "raise scaling_max_freq, and see to supply and cooling, which lower it"
        yield Finding("throttling", Severity.WARNING, "frequency", message, fix)
    if state.quota_stopped_share is not None and state.quota_stopped_share > STOPPED_SHARE:
        message = f"a CPU quota stopped processes of this group in {state.quota_stopped_share:.0%} of its periods"
        fix = "raise the quota (systemd: CPUQuota=, docker: --cpus), or use fewer threads: mesh node --threads"
        yield Finding("throttling", Severity.NOTE, "quota", message, fix)


def check_disk(facts: Facts) -> Iterator[Finding]:
    disk = facts.disk
    if disk is None:
        return
    free = f"{disk.available_bytes / (1 << 30):.1f} GiB of {disk.total_bytes / (1 << 30):.1f} GiB free"
    another = "choose another folder with --data-dir"
    if not disk.is_writable:
        message = "cannot be written: a node cannot keep its key and its models"
        fix = f"mount it writable and let this user write there, or {another}"
        yield Finding("disk", Severity.BROKEN, disk.folder, message, fix)
    elif disk.available_bytes < LEAST_BYTES:
        message = f"{free}: models cannot be stored"
        yield Finding("disk", Severity.BROKEN, disk.folder, message, f"free some space, or {another}")
    elif disk.available_inodes is not None and disk.available_inodes < LEAST_INODES:
        message = f"only {disk.available_inodes} more files fit on it"
        yield Finding("disk", Severity.BROKEN, disk.folder, message, f"remove some files, or {another}")
    elif disk.available_bytes < FEW_BYTES:
        yield Finding("disk", Severity.WARNING, disk.folder, f"only {free}", f"free some space, or {another}")
    else:
        yield Finding("disk", Severity.OK, disk.folder, free)
