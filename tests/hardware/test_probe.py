from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.fleet import Provider
from mesh.hardware import benchmark, probe, providers
from mesh.hardware.probe import (
    CPU_PROVIDER,
    ProbeResult,
    describe_end,
    parse_probe,
    probe_command,
    run_probe,
    static_facts,
)


def lines(*facts: Mapping[str, object]) -> str:
    return "".join(json.dumps(fact) + "\n" for fact in facts)


IMPORTED = {"event": "imported", "version": "1.22.0", "providers": [CPU_PROVIDER, "AProvider", "BProvider"]}
CPU_TRIED = {"event": "tried", "provider": CPU_PROVIDER, "usable": True, "detail": ""}
MEASURED = {"event": "measured", "gflops": 9.5, "memory_gb_per_s": 3.25, "threads": 4}
TRYING_A = {"event": "trying", "provider": "AProvider"}


def fake_child(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let the probe run this program instead; it sees the real command's arguments."""

    def command(only: tuple[str, ...] = (), measure: bool = True, threads: int | None = None) -> list[str]:
        return [sys.executable, "-c", program, ",".join(only), str(measure)]

    monkeypatch.setattr(probe, "probe_command", command)


# A real child


def test_this_machine_is_measured_in_a_child_process() -> None:
    start = time.monotonic()
    result = run_probe(40)
    assert result.runtime_version == onnxruntime.__version__
    usable = {provider.name for provider in result.providers if provider.usable}
    assert usable == {CPU_PROVIDER}
    assert all(provider.detail for provider in result.providers if not provider.usable)
    assert 0.1 < result.gflops < 20_000
    assert 0.1 < result.memory_gb_per_s < 1000
    assert result.untried == ()
    assert time.monotonic() - start < 20  # about 1.5 s on an idle machine


def test_the_parent_imports_neither_runtime_nor_numpy() -> None:
    program = (
        "import sys, mesh.hardware.probe as probe; from pathlib import Path; probe.static_facts(Path('.'));"
        "probe.probe_command(); print([name for name in ('onnxruntime', 'numpy', 'onnx') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"


def test_the_command_tries_only_what_it_is_told() -> None:
    done = subprocess.run(
        probe_command(only=[CPU_PROVIDER], measure=False, threads=1), capture_output=True, text=True, check=True
    )
    result = parse_probe(done.stdout, done.returncode)
    assert result == ProbeResult(onnxruntime.__version__, (Provider(CPU_PROVIDER, True),))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A parent that starts the child and is killed; the child is frozen in its import, so it cannot end by itself."""
    (tmp_path / "onnxruntime.py").write_text("import time\nprint('{}', flush=True)\ntime.sleep(600)\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import subprocess;"
        "from mesh.hardware.probe import probe_command;"
        "child = subprocess.Popen(probe_command(), stdout=subprocess.PIPE, text=True);"
        "[child.stdout.readline() for _ in range(2)];"
        "print(child.pid, flush=True); child.wait()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_child_whose_parent_is_gone_already_leaves_at_once() -> None:
    command = probe_command()
    command[command.index("--parent") + 1] = "1"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "parent process is gone" in done.stderr


def test_a_missing_runtime_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libsomething.so: cannot open', name='onnxruntime')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = run_probe(30)
    assert result.runtime_version == ""
    [provider] = result.providers
    assert (provider.name, provider.usable) == (CPU_PROVIDER, False)
    assert "onnxruntime cannot be imported: libsomething.so" in provider.detail


# Children that crash or hang, for real


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGILL, "illegal instruction"), (signal.SIGSEGV, "segmentation fault"), (signal.SIGKILL, "out of memory")],
)
def test_a_crash_at_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        f"import os, resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nos.kill(os.getpid(), {int(number)})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    result = run_probe(30)
    assert result == ProbeResult(providers=(Provider(CPU_PROVIDER, False, describe_end(-number)),))
    assert words in result.providers[0].detail


def test_a_hang_is_ended_in_time_and_the_child_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_child(monkeypatch, f"import time; print({lines({'event': 'importing'})!r}, flush=True); time.sleep(600)")
    start = time.monotonic()
    result = run_probe(0.5)
    assert time.monotonic() - start < 10
    assert result.providers == (Provider(CPU_PROVIDER, False, "no answer in time"),)


def test_a_probe_can_be_stopped_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_child(monkeypatch, "import time; time.sleep(600)")
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_probe, 60, stop)
        stop.set()
        assert running.result(timeout=10).gflops == 0


def test_a_provider_that_crashes_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    again = lines(
        IMPORTED, {"event": "tried", "provider": "BProvider", "usable": True, "detail": ""}, {"event": "done"}
    )
    first = lines(IMPORTED, CPU_TRIED, MEASURED, TRYING_A)
    program = f"import sys, os, signal; only = sys.argv[1]; print({first!r} if not only else {again!r}, flush=True)\n"
    program += "assert only in ('', 'BProvider'); only or os.kill(os.getpid(), signal.SIGKILL)"
    fake_child(monkeypatch, program)
    result = run_probe(30)
    assert {provider.name: provider.usable for provider in result.providers} == {
        CPU_PROVIDER: True,
        "AProvider": False,
        "BProvider": True,
    }
    assert (result.gflops, result.untried) == (9.5, ())


def test_a_child_that_always_crashes_before_it_tries_is_not_started_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_child(monkeypatch, f"import sys; print({lines(IMPORTED, CPU_TRIED)!r}, flush=True); sys.exit(3)")
    result = run_probe(30)
    assert result.providers == (Provider(CPU_PROVIDER, True),)
    assert result.untried == ()


# Reading


def test_what_came_before_a_crash_counts() -> None:
    result = parse_probe("library chatter\n" + lines(IMPORTED, CPU_TRIED, MEASURED, TRYING_A), -int(signal.SIGSEGV))
    assert result.runtime_version == "1.22.0"
    assert result.providers == (Provider(CPU_PROVIDER, True), Provider("AProvider", False, "segmentation fault"))
    assert (result.gflops, result.memory_gb_per_s) == (9.5, 3.25)
    assert result.untried == ("BProvider",)


def test_running_out_of_time_while_measuring_is_slow_not_unusable() -> None:
    output = lines(IMPORTED, CPU_TRIED, {"event": "measuring"})
    assert parse_probe(output, None).providers == (Provider(CPU_PROVIDER, True),)
    assert parse_probe(output, -int(signal.SIGILL)).providers[0].usable is False


def test_silence_is_an_answer() -> None:
    assert parse_probe("", -int(signal.SIGILL)).providers[0].detail.startswith("illegal instruction")
    assert parse_probe("", 0).providers == (Provider(CPU_PROVIDER, False, "the probe ended early with exit code 0"),)


def test_ends_have_words() -> None:
    assert describe_end(None) == "no answer in time"
    assert describe_end(-int(signal.SIGBUS)) == "bus error"
    assert describe_end(-int(signal.SIGTERM)) == "SIGTERM"
    assert describe_end(-200) == "signal 200"


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
EVENTS = st.sampled_from(["imported", "trying", "tried", "measuring", "measured", "error", "done", "?"])
KEYS = st.sampled_from(["version", "providers", "provider", "usable", "detail", "gflops", "memory_gb_per_s"])


@given(
    st.lists(st.tuples(EVENTS, st.dictionaries(KEYS, VALUES)), max_size=6), st.one_of(st.none(), st.integers(-70, 5))
)
def test_no_output_of_a_child_does_harm(facts: list[tuple[str, dict[str, object]]], returncode: int | None) -> None:
    output = lines(*({**values, "event": event} for event, values in facts))
    result = parse_probe(output, returncode)
    assert result.gflops >= 0
    assert all(isinstance(provider, Provider) for provider in result.providers)
    parse_probe(output[: len(output) // 2], returncode)


# Facts and figures


def test_static_facts_are_there_at_once_also_for_a_folder_to_come(tmp_path: Path) -> None:
    facts = static_facts(tmp_path / "not" / "yet")
    assert facts.arch == platform.machine()
    assert facts.cores > 0
    assert 0 < facts.memory_available_bytes <= facts.memory_bytes
    assert facts.disk_available_bytes > 0
    assert not (tmp_path / "not").exists()


def test_rates_are_work_over_the_whole_span() -> None:
    now = iter([0.0, 0.25, 0.5, 1.0])
    assert benchmark.rate_over(1.0, lambda: None, lambda: next(now)) == 3.0
    slow = iter([0.0, 8.0])
    assert benchmark.rate_over(1.0, lambda: None, lambda: next(slow)) == 0.125


def test_the_processor_is_tried_first() -> None:
    assert providers.order_providers(["CUDAExecutionProvider", "AzureExecutionProvider", CPU_PROVIDER]) == [
        CPU_PROVIDER, "AzureExecutionProvider", "CUDAExecutionProvider",
    ]  # fmt: skip


def test_a_provider_that_computes_nothing_or_wrong_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert providers.try_provider(CPU_PROVIDER, 1) == ""
    assert "fallback" in providers.try_provider("AzureExecutionProvider", 1)

    class WrongSession:
        def get_providers(self) -> list[str]:
            return ["X"]

        def run(self, names: object, feeds: dict[str, object]) -> list[object]:
            return [next(iter(feeds.values()))]

    monkeypatch.setattr(providers, "make_session", lambda model, name, threads: WrongSession())
    assert "wrong results" in providers.try_provider("X", 1)
    assert "missing" in providers.try_provider("Y", 1)


def test_the_figures_agree_with_a_measurement_made_another_way() -> None:
    import numpy

    values = numpy.ones((384, 384), dtype=numpy.float32)
    values @ values
    start, rounds = time.perf_counter(), 10
    for _ in range(rounds):
        values @ values
    by_numpy = rounds * 2 * 384**3 / (time.perf_counter() - start) / 1e9
    by_runtime = benchmark.measure_gflops(threads=len(os.sched_getaffinity(0)), seconds=0.2)
    assert by_numpy / 20 < by_runtime < by_numpy * 20  # a wrong unit or a factor of n would show
