"""What the daemon asks: facts at once (`static_facts`), and the probe of the runtime in a child process.

The daemon advertises first and probes after. Its runtime owns the task: it either calls `run_probe` on a
thread, or runs `probe_command` itself and hands the output to `parse_probe`, which is pure. Nothing here
imports onnxruntime or numpy: on a board where that crashes, the node still serves.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mesh.core.fleet import CodecSpeed, Provider
from mesh.hardware.condition import read_governor
from mesh.hardware.hardware_name import read_hardware_name
from mesh.hardware.limits import read_limits

CPU_PROVIDER = "CPUExecutionProvider"

DEFAULT_TIMEOUT_SECONDS = 60.0
"""For the whole probe: the import alone takes several seconds from the SD card of a small board."""

MAX_PROVIDERS = 32
"""More than ONNX Runtime knows; bounds how often the child is started again after a crash."""

STOP_POLL_SECONDS = 0.1
"""How often a running probe looks whether it is to stop."""

MAX_CODECS = 16

MAX_OUTPUT_CHARACTERS = 1 << 20
MAX_DETAIL_CHARACTERS = 300

_SIGNAL_WORDS = {
    signal.SIGILL: "illegal instruction: this build of ONNX Runtime is for newer processors",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGBUS: "bus error",
    signal.SIGABRT: "aborted",
    signal.SIGFPE: "arithmetic fault",
    signal.SIGKILL: "killed, which is what running out of memory looks like",
}


@dataclass(frozen=True, slots=True)
class StaticFacts:
    """What is known without running anything."""

    arch: str
    """As `platform.machine()` says: "aarch64", "x86_64", "armv7l"."""
    cores: float
    memory_bytes: int
    memory_available_bytes: int
    disk_available_bytes: int
    hardware: str = ""
    """What the board or its processor calls itself; empty where it does not say."""
    governor: str = ""
    """What decides the clock frequency; empty where the system does not tell."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the child found out; also after it crashed or ran out of time."""

    runtime_version: str = ""
    """ONNX Runtime's; empty where it could not be imported."""
    providers: tuple[Provider, ...] = ()
    gflops: float = 0.0
    """0 where it could not be measured."""
    memory_gb_per_s: float = 0.0
    codecs: tuple[CodecSpeed, ...] = ()
    """That this installation speaks besides raw tensors; empty where they could not be measured."""
    untried: tuple[str, ...] = ()
    """Providers that the child did not come to: run it again with `only` these."""


def static_facts(data_dir: Path) -> StaticFacts:
    """Facts about this process's share of the device, and the disk that holds (or will hold) `data_dir`."""
    limits = read_limits()
    existing = next(folder for folder in (data_dir.absolute(), *data_dir.absolute().parents) if folder.exists())
    return StaticFacts(
        arch=platform.machine(),
        cores=limits.cores,
        memory_bytes=limits.memory_bytes,
        memory_available_bytes=limits.memory_available_bytes,
        disk_available_bytes=shutil.disk_usage(existing).free,
        hardware=read_hardware_name(),
        governor=read_governor(),
    )


def probe_command(only: Sequence[str] = (), measure: bool = True, threads: int | None = None) -> list[str]:
    """The child's command line. It prints to stdout, and dies with the process that starts it (Linux).

    `only`: the providers to try, all when empty. `threads`: default the process's cores, rounded up.
    The parent must be the calling process, on a thread that outlives the child.
    """
    count = threads if threads is not None else max(1, math.ceil(read_limits().cores))
    # The parent's import path is handed over, so that the child finds this package wherever it came from.
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from mesh.hardware.child import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "--parent", str(os.getpid()), "--threads", str(count)]
    if only:
        command += ["--only", ",".join(only)]
    if not measure:
        command.append("--no-measure")
    return command


def parse_probe(stdout: str, returncode: int | None) -> ProbeResult:
    """What the child's output and its end mean. `returncode` as `subprocess` gives it; None: it ran out of time.

    A provider that was being tried when the child ended is not usable, with the end as its reason.
    """
    version, listed, tried, trying = "", list[str](), dict[str, Provider](), CPU_PROVIDER
    gflops = memory_gb_per_s = 0.0
    codecs: tuple[CodecSpeed, ...] = ()
    ended = measuring = False
    for fact in _facts(stdout):
        match fact.get("event"):
            case "imported":
                version, listed = _text(fact.get("version")), _texts(fact.get("providers"))
                trying = ""
            case "trying":
                trying = _text(fact.get("provider"))
            case "tried":
                name = _text(fact.get("provider"))
                tried[name] = Provider(name, fact.get("usable") is True, _text(fact.get("detail")))
                trying = ""
            case "measuring":
                measuring = True
            case "measured":
                gflops, memory_gb_per_s = _rate(fact.get("gflops")), _rate(fact.get("memory_gb_per_s"))
                measuring = False
            case "coded":
                codecs = (*codecs, *_codecs(fact))[:MAX_CODECS]
            case "error":
                tried[CPU_PROVIDER] = Provider(CPU_PROVIDER, False, _text(fact.get("detail")))
                trying = ""
            case "done":
                ended, trying = True, ""
    if not ended:
        # Too slow to be measured in time is not unable to compute: that was tried before.
        blamed = CPU_PROVIDER if measuring and returncode is not None else trying
        if blamed:
            tried[blamed] = Provider(blamed, False, describe_end(returncode))
    untried = () if ended else tuple(name for name in listed if name not in tried)
    return ProbeResult(version, tuple(tried.values()), gflops, memory_gb_per_s, codecs, untried)


def describe_end(returncode: int | None) -> str:
    """Why a child ended early, in words."""
    if returncode is None:
        return "no answer in time"
    if returncode >= 0:
        return f"the probe ended early with exit code {returncode}"
    try:
        number = signal.Signals(-returncode)
    except ValueError:
        return f"signal {-returncode}"
    return _SIGNAL_WORDS.get(number, number.name)


def run_probe(
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS, stop: threading.Event | None = None, measure: bool = True
) -> ProbeResult:
    """Probe in a child process and wait for it, `timeout_seconds` at most; blocks, for a thread.

    Without `measure` it only tries providers.

    Setting `stop` ends the child and this call within `STOP_POLL_SECONDS`: a daemon that shuts down while
    it measures must not wait for the thread.

    Never raises for what the child does: crashes and time-outs become providers that are not usable.
    After a crash the rest of the providers is tried in a new child.
    """
    deadline = time.monotonic() + timeout_seconds
    stop = stop if stop is not None else threading.Event()
    result = _run_once(probe_command(measure=measure), deadline, stop)
    for _ in range(MAX_PROVIDERS):
        if not result.untried or time.monotonic() >= deadline or stop.is_set():
            break
        again = _run_once(probe_command(only=result.untried, measure=False), deadline, stop)
        known = {provider.name: provider for provider in (*again.providers, *result.providers)}
        # A child that does not even reach the first of them would be started for ever.
        untried = again.untried if set(again.untried) < set(result.untried) else ()
        result = replace(result, providers=tuple(known.values()), untried=untried)
    return result


def _run_once(command: Sequence[str], deadline: float, stop: threading.Event) -> ProbeResult:
    with subprocess.Popen(  # noqa: S603 - our own interpreter and program
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            while True:
                try:
                    output, _ = child.communicate(timeout=STOP_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    if time.monotonic() < deadline and not stop.is_set():
                        continue
                    child.kill()
                    output, _ = child.communicate()
                    return parse_probe(output.decode("utf-8", "replace"), None)
                return parse_probe(output.decode("utf-8", "replace"), child.returncode)
        finally:
            child.kill()  # does nothing to one that has ended


def _facts(stdout: str) -> list[dict[str, object]]:
    """The JSON objects among the lines; libraries may print between them, and the last line may be cut off."""
    facts = []
    for line in stdout[:MAX_OUTPUT_CHARACTERS].splitlines():
        if line.startswith("{"):
            try:
                fact = json.loads(line)
            except ValueError:
                continue
            if isinstance(fact, dict):
                facts.append(fact)
    return facts


def _text(value: object) -> str:
    return value[:MAX_DETAIL_CHARACTERS] if isinstance(value, str) else ""


def _texts(value: object) -> list[str]:
    return [_text(item) for item in value[:MAX_PROVIDERS]] if isinstance(value, list) else []


def _codecs(fact: dict[str, object]) -> tuple[CodecSpeed, ...]:
    seconds = _rate(fact.get("encode_byte_seconds")), _rate(fact.get("decode_byte_seconds"))
    name = _text(fact.get("codec"))
    return (CodecSpeed(name, *seconds),) if name and all(seconds) else ()


def _rate(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0.0
