"""Rehearsals: a quiet run makes what was predicted, one seed is one history, and what befalls it is dealt with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.core.costs import Costs, DeviceCosts, Handling
from mesh.core.fleet import Link
from mesh.core.plan import Objective, Plan
from mesh.errors import UsageError
from mesh.planning.exact import plan
from mesh.planning.problem import Problem
from mesh.planning.space import Space
from mesh.simulate.rehearsal import Rehearsed, rehearse
from mesh.simulate.rehearsal_file import Incident, Kind, RehearsalPlan, parse_rehearsal
from tests.planning.instances import PLENTY, chain_graph, node_ids, random_problem

NAMES = ("n1", "n2", "n3")


def boards(*speeds: float) -> Problem:
    """Boards that take 80 ms for the model divided by their speed, on fast links; 1 MB of weights per group."""
    devices = node_ids(len(speeds))
    known = {
        device: DeviceCosts(tuple(0.01 * i / speed for i in range(9)), PLENTY, True, Handling(1e-4, 0.0, True))
        for device, speed in zip(devices, speeds, strict=True)
    }
    links = {(a, b): Link(1e-4, 1e8) for a in devices for b in devices if a != b}
    graph = chain_graph([10**6] * 8, weights=[1_000_000] * 8)
    return Problem(graph, Costs(known, links), devices, names=dict(zip(devices, NAMES, strict=False)))


def run(problem: Problem, scenario: RehearsalPlan) -> Rehearsed:
    answer = plan(problem)
    assert isinstance(answer, Plan)
    return rehearse(problem, answer, scenario)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_quiet_run_makes_what_was_predicted(replicas: int) -> None:
    """The law: simulated steady period = predicted period, within 1 %."""
    checked = 0
    for seed in range(25):
        problem = random_problem(seed, Objective.THROUGHPUT)
        if replicas > 1:
            problem = replace(problem, stages=None, space=Space(max_replicas=replicas))
        answer = plan(problem)
        if not isinstance(answer, Plan):
            continue
        # Replicas are taken for equally fast until they are known: with unequal ones the beginning takes longer.
        periods = 1000 if replicas == 1 else 3000
        done = rehearse(problem, answer, RehearsalPlan(seconds=periods / answer.predicted.throughput_per_s))
        (only,) = done.generations
        assert only.throughput_per_s == pytest.approx(answer.predicted.throughput_per_s, rel=0.01), seed
        assert only.predicted_per_s == pytest.approx(answer.predicted.throughput_per_s)
        assert (done.dropped, done.replayed) == (0, 0)
        checked += len(answer.devices) > 1
    assert checked >= 5


def test_a_lone_frame_takes_the_predicted_latency() -> None:
    problem = boards(1.0, 1.0)
    answer = plan(problem)
    assert isinstance(answer, Plan)
    done = rehearse(problem, answer, RehearsalPlan(seconds=20.0, rate=1.0))
    assert done.latency_p50_s == pytest.approx(answer.predicted.latency_s, rel=0.01)
    assert done.latency_p99_s == pytest.approx(answer.predicted.latency_s, rel=0.01)


NOISY = RehearsalPlan(
    seconds=40.0,
    compute_noise=0.2,
    link_noise_seconds=0.002,
    loss=0.01,
    incidents=(Incident(5.0, "n2", Kind.LEAVE), Incident(20.0, "n2", Kind.RETURN)),
)


def test_a_seed_is_a_history() -> None:
    problem = boards(1.0, 1.0, 1.0)
    assert run(problem, NOISY) == run(problem, NOISY)
    assert run(problem, NOISY) != run(problem, replace(NOISY, seed=2))


def test_a_device_that_leaves_is_repaired_around_and_taken_back() -> None:
    done = run(boards(1.0, 1.0, 1.0), NOISY)
    told = "\n".join(event.text for event in done.events)
    assert "n2 leaves" in told
    assert "n2 is lost: stage" in told
    assert "after the loss" in told
    assert "with n2" in told
    first, *_, last = done.generations
    assert len(first.devices) == len(last.devices) == 3
    assert any(len(each.devices) == 2 for each in done.generations)
    two = next(each for each in done.generations if len(each.devices) == 2)
    assert two.throughput_per_s < last.throughput_per_s <= first.predicted_per_s * 1.02
    assert done.replayed > 0
    assert done.dropped == 0
    assert done.offered - done.answered < 20, "nothing is lost of a lossless stream but what is under way"


def test_a_live_stream_drops_what_it_cannot_send() -> None:
    done = run(boards(1.0, 1.0), replace(NOISY, rate=100.0, is_live=True))
    assert done.dropped > 1000
    assert done.answered + done.dropped <= done.offered
    assert done.latency_p99_s < 1.0


def test_a_device_that_becomes_slow_is_noticed_and_planned_around() -> None:
    incident = Incident(5.0, "n1", Kind.SLOW, 2.0)
    done = run(boards(1.0, 1.0, 1.0), RehearsalPlan(seconds=60.0, incidents=(incident,)))
    told = [event.text for event in done.events]
    assert any("times the" in text and "of its profile" in text for text in told)
    before, after = done.generations[0], done.generations[-1]
    assert after.begins_at < 35.0
    assert after.throughput_per_s > 1.2 * before.predicted_per_s / 2
    assert after.throughput_per_s == pytest.approx(after.predicted_per_s, rel=0.05)


def test_the_only_device_leaves_and_returns() -> None:
    incidents = (Incident(2.0, "n1", Kind.CRASH), Incident(8.0, "n1", Kind.RETURN))
    done = run(boards(1.0), RehearsalPlan(seconds=15.0, incidents=incidents))
    assert any("no plan is possible" in event.text for event in done.events)
    assert 90 <= done.answered <= 125


def test_too_long_a_run_is_refused() -> None:
    with pytest.raises(UsageError, match="frames, the limit is"):
        run(boards(1000.0), RehearsalPlan(seconds=86_400.0))


# --- the file -------------------------------------------------------------------------------------

FILE = """
seed = 7
seconds = 60
rate = 30
live = true
[noise]
compute = 0.1
link = "1ms"
loss = 0.01
[[event]]
at = "20s"
device = "n2"
what = "slow"
factor = 3
[[event]]
at = "10s"
device = "n1"
what = "leave"
"""


def test_a_file_is_read() -> None:
    assert parse_rehearsal(FILE, NAMES) == RehearsalPlan(
        7,
        60.0,
        30.0,
        True,
        0.1,
        0.001,
        0.01,
        (Incident(10.0, "n1", Kind.LEAVE), Incident(20.0, "n2", Kind.SLOW, 3.0)),
    )
    assert parse_rehearsal("", NAMES) == RehearsalPlan()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seed = 7", "sead = 7", "unknown key 'sead'.*did you mean seed"),
        ("seed = 7", "seed = -1", "seed must be a whole number"),
        ("seconds = 60", "seconds = 0", "seconds must be a number from 0.1"),
        ("seconds = 60", "seconds = nan", "seconds must be a number"),
        ("seconds = 60", "seconds = 15", "event 1: at is 20 s, after the end of the run"),
        ("rate = 30", "rate = 0", "rate must be a number from 0.001"),
        ("rate = 30", "rate = inf", "rate must be a number"),
        ("live = true", 'live = "yes"', "live must be true or false"),
        ("compute = 0.1", "compute = -1", r"\[noise\]: compute must be"),
        ("loss = 0.01", "loss = 0.9", r"\[noise\]: loss must be a number from 0 to 0.5"),
        ('link = "1ms"', "link = 1", r'\[noise\]: link must be a time such as "1ms"'),
        ('at = "20s"', 'at = "soon"', "event 1: at must be a time"),
        ('device = "n2"', 'device = "n9"', "event 1: there is no device 'n9'.*there are: n1, n2, n3"),
        ('what = "slow"', 'what = "explode"', "event 1: what is 'explode'.*leave, crash, return, slow"),
        ("factor = 3", "factor = 0", "event 1: factor must be"),
        ('what = "leave"', 'what = "slow"', "event 2: factor belongs to"),
        ('what = "slow"', 'what = "leave"', "event 1: factor belongs to"),
        ('at = "10s"', "", "event 2 has no at"),
        ("[noise]", "[nois]", "unknown key 'nois'"),
        ("seed = 7", "seed =", "is not TOML"),
    ],
)
def test_what_makes_no_sense_is_named(before: str, after: str, said: str) -> None:
    assert before in FILE
    with pytest.raises(UsageError, match=said):
        parse_rehearsal(FILE.replace(before, after, 1), NAMES)
