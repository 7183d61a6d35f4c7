"""What scripts/check_recovery runs: a lab of four boards, two streams through three stages, and faults one by one.

A fault comes when the deployment is whole: every board answers, each stage is active on a board of its own, and
nothing older is left anywhere; or after a while in any case. Silences of the lossless stream's answers are told by its
client (scripts/recovery_client.py) and belong to the fault before them. All choices follow from the seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from check_lab import ENVIRONMENT, MODEL, ROOT, lab, on, wait_for

sys.path.insert(0, str(ROOT))

from mesh.errors import MeshError
from mesh.lab import state
from mesh.lab.building import check_machine
from mesh.lab.faults import Fault
from mesh.lab.launch import session_of
from mesh.lab.operating import find_device, inflict, open_lab
from mesh.runtime.hanging import VARIABLE

LAB = "recovery"
BOARDS = 4
STAGES = 3
FLEET = f"""
[[device]]
name = "board"
count = {BOARDS}
cpu = 0.35
memory = "600MB"
rate = "100Mbit"

[[device]]
name = "desk"
role = "client"
"""
LOAD = 0.7
LIVE_HZ, DEADLINE_S = 5.0, 0.5
MEASURE_S = 5.0
CRASHES = ("kill-node", "kill-engine")
KINDS = (*CRASHES, "freeze", "cut", "cut-in", "cut-out", "hang")
CRASH_LIMIT_S, OTHER_LIMIT_S = 2.0, 4.0
HANG_S = 8.0
WHOLE_LIMIT_S = 40.0
"""Then the next fault comes all the same; the fault's line says so."""
STEADY_S = 1.5
TAIL_S = 5.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Told:
    """What the client has said so far; written by the thread that reads it."""

    gaps: list[tuple[float, float]] = field(default_factory=list)
    boards: dict[str, Any] = field(default_factory=dict)
    used: list[list[int]] = field(default_factory=list)
    looked_at: float = 0.0
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    is_stopped: bool = False
    """Somebody interrupts the check: no more faults, but the account of those that were."""

    def stop(self, *_: object) -> None:
        self.is_stopped = True

    def listen(self, stream: Any) -> None:
        for line in stream:
            said = json.loads(line)
            if said["kind"] == "gap" and said["stream"] == "lossless":
                self.gaps.append((said["begin"], said["end"]))
            elif said["kind"] == "look":
                self.boards, self.used, self.looked_at = said["boards"], said["used"], said["at"]
            elif said["kind"] == "end":
                self.ends[said["stream"]] = said
            elif said["kind"] == "broken":
                self.broken.append(said["error"])
                say(f"the {said['stream']} stream broke: {said['error']}")

    def newest(self) -> dict[str, Any] | None:
        reports = [report for said in self.boards.values() for report in said or ()]
        return max(reports, key=lambda report: report["generation"]) if reports else None

    def what_is_amiss(self) -> str:
        """Why the deployment is not whole; empty where it is."""
        newest = self.newest()
        silent = [name for name, said in self.boards.items() if said is None]
        if silent or newest is None or len(self.boards) < BOARDS:
            return f"{silent} do not answer"
        devices = [name for stage in newest["devices"] for name in stage]
        if len(set(devices)) < STAGES:
            return f"stages share boards: {newest['devices']}"
        for name, said in self.boards.items():
            held = {tuple(report["generation"]): report["state"] for report in said}
            now = held.pop(tuple(newest["generation"]), "none")
            if name in devices and now != "active":
                return f"{name} is {now} in {newest['generation']}"
            if held:
                return f"{name} still holds {held}"
        if any(fence != newest["generation"] for fence in self.used):
            return f"streams use {self.used}, the newest is {newest['generation']}"
        return ""

    def longest(self, begin: float, end: float) -> float:
        return max((e - b for b, e in self.gaps if e > begin and b < end), default=0.0)


@dataclass
class Happened:
    kind: str
    device: str
    stage: int
    seconds: float
    begin: float
    before: list[int]
    end: float = 0.0
    after: list[int] = field(default_factory=list)
    amiss: str = ""

    @property
    def limit_s(self) -> float:
        return CRASH_LIMIT_S if self.kind in CRASHES else OTHER_LIMIT_S


def daemon_processes(device: str) -> tuple[int, list[int]]:
    """The daemon and its engines."""
    groups = check_machine()
    record = open_lab(groups, LAB)
    daemon = state.read_devices(LAB)[device].daemon
    assert daemon is not None
    ours = [
        process
        for process in groups.processes(f"{LAB}/{find_device(record, device).group}")
        if session_of(process) == daemon.process
    ]
    engines = [p for p in ours if b"mesh.engines.child" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return daemon.process, engines


def afflict(happened: Happened) -> None:
    """Begin the fault; what heals it runs by itself."""
    kind, device = happened.kind, happened.device
    if kind == "kill-engine":
        _, engines = daemon_processes(device)
        assert engines, f"{device} has no engine child"
        for engine in engines:
            os.kill(engine, signal.SIGKILL)
        return
    if kind == "hang":
        os.kill(daemon_processes(device)[0], signal.SIGUSR2)
        return
    if kind == "freeze":
        inflict(LAB, device, Fault.FREEZE, happened.seconds)
        return
    inflict(LAB, device, Fault.KILL if kind == "kill-node" else Fault(kind), None)


def heal(happened: Happened) -> None:
    if happened.kind in ("kill-node", "cut", "cut-in", "cut-out"):
        time.sleep(max(0.0, happened.begin + happened.seconds - time.monotonic()))
        inflict(LAB, happened.device, Fault.HEAL, None)
    else:
        time.sleep(max(0.0, happened.begin + happened.seconds - time.monotonic()))


def await_whole(told: Told) -> str:
    """What is amiss when the waiting ended; empty if the deployment is whole."""
    deadline, since = time.monotonic() + WHOLE_LIMIT_S, time.monotonic()
    while True:
        now = time.monotonic()
        amiss = told.what_is_amiss() or ("no look" if now - told.looked_at > 3 else "")
        if amiss:
            since = now
        if now - since >= STEADY_S or now > deadline or told.broken or told.is_stopped:
            return amiss
        time.sleep(0.1)


def choose(count: int, seed: int, kinds: list[str]) -> list[tuple[str, int, float, float]]:
    """(kind, stage, seconds until it is healed, pause before it); each kind as often as the others."""
    drawn = random.Random(seed)
    order: list[str] = []
    while len(order) < count:
        order += drawn.sample(kinds, len(kinds))
    seconds = {"kill-node": (2.0, 6.0), "kill-engine": (0.0, 0.0), "hang": (HANG_S, HANG_S), "freeze": (5.0, 20.0)}
    return [
        (kind, drawn.randrange(STAGES), round(drawn.uniform(*seconds.get(kind, (4.0, 12.0))), 1), drawn.uniform(0.0, 2))
        for kind in order[:count]
    ]


def run_faults(schedule: list[tuple[str, int, float, float]], told: Told) -> list[Happened]:
    done: list[Happened] = []
    amiss = await_whole(told)
    assert not amiss, f"before the first fault: {amiss}"
    for number, (kind, stage, seconds, pause) in enumerate(schedule, 1):
        time.sleep(pause)
        newest = told.newest()
        if newest is None or told.broken or told.is_stopped:
            break
        device = newest["devices"][stage][0]
        now = time.monotonic()
        if done:
            conclude(done[-1], now, newest, told)
        happened = Happened(kind, device, stage, seconds, now, newest["generation"])
        done.append(happened)
        afflict(happened)
        heal(happened)
        happened.amiss = await_whole(told)
        if happened.amiss:
            say(f"  not whole {WHOLE_LIMIT_S:g} s later: {happened.amiss}")
        say(f"{number}/{len(schedule)} {kind} {device} (stage {stage}): {told.longest(happened.begin, 1e18):.2f} s")
    time.sleep(TAIL_S)
    if done:
        conclude(done[-1], time.monotonic(), told.newest() or {"generation": []}, told)
    return done


def conclude(happened: Happened, now: float, newest: dict[str, Any], told: Told) -> None:
    happened.end, happened.after = now, newest["generation"]
    line = {
        "kind": happened.kind,
        "device": happened.device,
        "stage": happened.stage,
        "seconds": happened.seconds,
        "t0": round(happened.begin, 3),
        "gap_s": round(told.longest(happened.begin, now), 3),
        "generation_before": happened.before,
        "generation_after": happened.after,
        "amiss": happened.amiss,
    }
    print(json.dumps(line), flush=True)


def judge(done: list[Happened], planned: int, told: Told) -> list[str]:
    broken = [f"a stream broke: {error}" for error in told.broken]
    if len(done) < planned:
        broken.append(f"only {len(done)} of {planned} faults")
    print(f"{'kind':<12} {'count':>5} {'max gap s':>10} {'median s':>9} {'limit s':>8}")
    for kind in dict.fromkeys(each.kind for each in done):
        mine = [each for each in done if each.kind == kind]
        gaps = [told.longest(each.begin, each.end) for each in mine]
        print(f"{kind:<12} {len(mine):>5} {max(gaps):>10.2f} {statistics.median(gaps):>9.2f} {mine[0].limit_s:>8g}")
        if max(gaps) > mine[0].limit_s:
            over = sum(gap > mine[0].limit_s for gap in gaps)
            broken.append(f"{kind}: {over} of {len(gaps)} gaps above {mine[0].limit_s:g} s")
    for name in ("lossless", "live"):
        end = told.ends.get(name)
        if end is None:
            broken.append(f"the {name} stream told no totals")
            continue
        outcomes = end["outcomes"]
        lost = end["sent"] - sum(outcomes.values())
        print(
            f"{name}: sent {end['sent']}, {outcomes}, lost {lost}, duplicated {end['duplicated']}, "
            f"out of order {end['out_of_order']}, wrong {end['wrong']}, {end['counters']}"
        )
        allowed = {"OK"} if name == "lossless" else {"OK", "DROPPED", "LATE"}
        if lost or end["duplicated"] or end["out_of_order"] or end["wrong"] or set(outcomes) - allowed or end["error"]:
            broken.append(f"{name}: not every frame answered once, in order, rightly: {end['failures']} {end['error']}")
    broken += [f"{e.kind} {e.device}: not whole again: {e.amiss}" for e in done if e.amiss]
    return broken


def check(count: int, seed: int, kinds: list[str], keep_logs: Path | None) -> int:
    schedule = choose(count, seed, kinds)
    ENVIRONMENT[VARIABLE] = os.environ[VARIABLE] = str(HANG_S)
    os.environ["PYTHONPATH"] = str(ROOT)
    told = Told()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fleet.toml"
        file.write_text(FLEET)
        with lab(file, LAB):
            try:
                done = stream_through(schedule, told)
            finally:
                if keep_logs is not None:
                    keep_logs.mkdir(parents=True, exist_ok=True)
                    for log in state.data_folder(LAB).glob("*/daemon.log"):
                        (keep_logs / f"{log.parent.name}.log").write_bytes(log.read_bytes())
    broken = judge(done, len(schedule), told)
    for each in broken:
        print(f"FAILED  {each}")
    print(f"{'FAILED' if broken else 'ok'}: {len(done)} faults, seed {seed}")
    return int(bool(broken))


def stream_through(schedule: list[tuple[str, int, float, float]], told: Told) -> list[Happened]:
    say("waiting for the boards to measure themselves")

    def nodes() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(on(LAB, "desk", "mesh", "nodes", "--json"))["nodes"]
        return found

    wait_for(lambda: [node["state"] for node in nodes()] == ["ready"] * BOARDS, 120, "all boards are ready")
    deployed = on(LAB, "desk", "mesh", "deploy", str(MODEL), "--name", "digits", "--stages", str(STAGES), "--json")
    say(f"plan: {[stage['devices'] for stage in json.loads(deployed)['plan']['stages']]}")
    bench = json.loads(on(LAB, "desk", "mesh", "bench", "digits", "--seconds", str(MEASURE_S), "--json"))
    rate_hz = LOAD * bench["throughput_per_s"]
    say(f"{bench['throughput_per_s']:.0f} frames/s measured, {rate_hz:.0f} frames/s sent, live {LIVE_HZ:g} frames/s")
    addresses = [f"10.77.0.{number}:50071" for number in range(1, BOARDS + 1)]
    program = [sys.executable, str(ROOT / "scripts" / "recovery_client.py"), str(rate_hz), str(LIVE_HZ)]
    line = [sys.executable, "-m", "nodes", "lab", "exec", "--name", LAB, "desk", "--", *program, str(DEADLINE_S)]
    client = subprocess.Popen(
        [*line, *addresses],
        env=ENVIRONMENT,
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    listening = threading.Thread(target=told.listen, args=(client.stdout,), daemon=True)
    listening.start()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, told.stop)
        wait_for(lambda: told.looked_at > 0 or client.poll() is not None, 30, "the streams are open")
        return run_faults(schedule, told)
    finally:
        assert client.stdin is not None
        client.stdin.close()
        try:
            client.wait(60)
        except subprocess.TimeoutExpired:
            client.kill()
            client.wait()
        listening.join(5)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/check_recovery", description=__doc__)
    parser.add_argument("--faults", type=int, default=40, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="A,B", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the daemons' logs there")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"there are no kinds {unknown}")
    try:
        return check(options.faults, options.seed, kinds, options.logs)
    except (AssertionError, MeshError, subprocess.TimeoutExpired) as error:
        print(f"FAILED  {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
