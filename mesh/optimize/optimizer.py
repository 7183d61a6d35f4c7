"""One model in, a report with judged and timed variants out.

Order: golden set from the float model with optimisation off; preprocess; each pass, judged, and where it fails with as
few operators as needed left as they were; then all offered variants timed in turns. Which operators those are is chosen
on the half that calibrates; the other half only says yes or no, or its verdict would be on the data that chose. A pass
that fails or a variant that fails the gate becomes a refusal with its reason; only what makes any judgement impossible
is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import onnx
import onnxruntime

from mesh.arrays import Array
from mesh.core.plan import FLOAT
from mesh.errors import MeshError, UsageError
from mesh.model.read import SourceModel, read_model_bytes
from mesh.optimize.choosing import choose
from mesh.optimize.contract import Material, Pass, PassFailed
from mesh.optimize.energy import EnergyMeter, Power, estimate_energy, measure_energy
from mesh.optimize.footprint import measure_footprint
from mesh.optimize.golden_set import take_golden_set
from mesh.optimize.operators import why_not_quantisable
from mesh.optimize.quantiser import MeasuredRanges
from mesh.optimize.report import Offer, PassSize, Refusal, Report
from mesh.optimize.running import answers_of, reference_answers
from mesh.optimize.samples import Samples, read_labels, read_samples
from mesh.optimize.search import fewest_in_float
from mesh.optimize.table import PASSES, PREPARATION, VARIANTS
from mesh.optimize.timing import time_in_turns
from mesh.optimize.verdict import Golden, Scores, make_golden

MAX_DROP_POINTS = 1.0
"""Of accuracy, in percentage points: what people accept for a model of a quarter of the size."""

MIN_PREPARED_SQNR_DB = 60.0
"""Fusion only reorders float arithmetic: 100 dB and more. Below, an optimisation or a conversion broke the model."""

Progress = Callable[[str], None]


def optimize(
    model: SourceModel,
    calibration: Mapping[str, Array],
    labels: Mapping[str, Array] | None = None,
    *,
    max_drop_points: float = MAX_DROP_POINTS,
    progress: Progress = lambda text: None,
    meter: EnergyMeter | Power | None = None,
) -> Report:
    """Make, judge and time the variants of `model` on this machine; `meter` tells or estimates what they take.

    Raises:
        UsageError: `max_drop_points` is no percentage.
        TensorMismatch, CalibrationError, ModelUnsupported: The sample or the labels do not fit the model.
        ModelInvalid: The float model does not run on the sample.
    """
    if not 0 <= max_drop_points <= 100:
        raise UsageError(f"--max-drop {max_drop_points:g} is outside 0..100 points")
    samples = read_samples(calibration, model.inputs)
    wanted = None if labels is None else read_labels(labels, len(samples))
    calibrating, judging = samples.halves()
    progress(f"golden set: {len(judging)} samples through the float model, not optimised")
    work = _Work(model, calibrating, _judge_by(model, judging, wanted, max_drop_points), wanted, progress)
    refused, passes, offered = _make_variants(work, samples)
    return _add_energy(_measure(work, offered, refused, passes), judging, meter, progress)


@dataclass(frozen=True)
class _Judge:
    """A half of the sample with the float model's answers to it."""

    samples: Samples
    golden: Golden
    max_drop_points: float

    @property
    def reference(self) -> Scores:
        return self.golden.score(self.golden.answers)

    def judge(self, data: bytes) -> tuple[Scores, str]:
        """Scores of a variant, and why it is refused. Raises `PassFailed`."""
        scores = self.golden.score(answers_of(data, self.samples, optimised=True))
        return scores, self.golden.judge(scores, self.reference, self.max_drop_points)


def _judge_by(model: SourceModel, samples: Samples, labels: Array | None, max_drop_points: float) -> _Judge:
    """`labels`: of all samples, by their rows."""
    wanted = None if labels is None else labels[list(samples.rows)]
    return _Judge(samples, make_golden(reference_answers(model.data, samples), wanted, samples.rows), max_drop_points)


@dataclass(frozen=True)
class _Work:
    model: SourceModel
    calibrating: Samples
    verdict: _Judge
    """By the half that neither calibrates nor chooses."""
    labels: Array | None
    progress: Progress

    @cached_property
    def choice(self) -> _Judge:
        """By the half that calibrates: what is tried is tried there. Made when something has to be searched."""
        return _judge_by(self.model, self.calibrating, self.labels, self.verdict.max_drop_points)


def _make_variants(work: _Work, samples: Samples) -> tuple[list[Refusal], list[PassSize], list[Offer]]:
    reason = why_not_quantisable(work.model.proto)
    if not reason and samples.are_all_the_same():
        reason = "all samples are the same: neither ranges nor accuracy can be measured with them"
    prepared, sizes = None, []
    if not reason:
        try:
            prepared, size = _prepare(work)
            sizes.append(size)
        except PassFailed as error:
            reason = f"{PREPARATION}: {error}"
    if prepared is None:
        return [Refusal(name, reason) for name in VARIANTS], [], []
    refused: list[Refusal] = []
    offered: list[Offer] = []
    maker = _Maker(work, prepared, Material(work.calibrating, MeasuredRanges(work.calibrating)))
    for name in VARIANTS:
        work.progress(f"{name}: making and judging")
        made = maker.make(PASSES[name](), refused)
        if made is not None:
            offered.append(made)
            sizes.append(_size(name, work.model.proto, onnx.load_model_from_string(made.data)))
    return refused, sizes, offered


def _prepare(work: _Work) -> tuple[onnx.ModelProto, PassSize]:
    work.progress(f"{PREPARATION}: shapes and fusion")
    step = PASSES[PREPARATION]()
    before = work.model.proto
    reason = step.requires(before)
    if reason:
        raise PassFailed(reason)
    after = step.apply(before, Material((), MeasuredRanges(())))
    wrong = step.ensures(before, after)
    if not wrong:
        scores, _reason = work.verdict.judge(after.SerializeToString())
        if not scores.sqnr_db >= MIN_PREPARED_SQNR_DB:
            wrong = f"its answers are only {scores.sqnr_db:.0f} dB from the model's"
    if wrong:
        raise PassFailed(wrong)
    return after, _size(PREPARATION, before, after)


def _size(name: str, before: onnx.ModelProto, after: onnx.ModelProto) -> PassSize:
    return PassSize(name, before.ByteSize(), after.ByteSize(), len(before.graph.node), len(after.graph.node))


@dataclass(frozen=True)
class _Maker:
    work: _Work
    prepared: onnx.ModelProto
    material: Material

    def make(self, step: Pass, refused: list[Refusal]) -> Offer | None:
        """The variant, or one with some operators as they were; what was refused on the way is added to `refused`."""
        reason = step.requires(self.prepared)
        if reason:
            refused.append(Refusal(step.name, reason))
            return None
        try:
            offer, reason = self._attempt(step, step.name, frozenset(), self.work.verdict)
            if offer is not None:
                return offer
            refused.append(Refusal(step.name, reason))
            return self._search(step, refused)
        except PassFailed as error:
            refused.append(Refusal(step.name, str(error)))
            return None

    def _attempt(self, step: Pass, variant: str, keep_float: frozenset[str], by: _Judge) -> tuple[Offer | None, str]:
        made = step.apply(self.prepared, replace(self.material, keep_float=keep_float))
        wrong = step.ensures(self.prepared, made)
        if wrong:
            return None, wrong
        try:
            data = read_model_bytes(made.SerializeToString()).data  # what is offered must pass the mesh's own door
        except MeshError as error:
            return None, f"it would not be accepted by the mesh: {error}"
        scores, reason = by.judge(data)
        return (None if reason else Offer(variant, data, scores, tuple(sorted(keep_float)))), reason

    def _search(self, step: Pass, refused: list[Refusal]) -> Offer | None:
        variant = f"{step.name}-mixed"
        self.work.progress(f"{step.name}: refused; looking for the parts that must stay as they are")
        order = step.order(self.prepared, self.material.samples)

        def attempt(keep_float: frozenset[str]) -> Offer | None:
            self.work.progress(f"{variant}: {len(keep_float)} of {len(order)} parts as they are")
            return self._attempt(step, variant, keep_float, self.work.choice)[0]

        chosen = fewest_in_float(order, attempt)
        if chosen is None:
            refused.append(Refusal(variant, f"it fails even with all but one of {len(order)} parts as they are"))
            return None
        left = f"with {len(chosen.kept_float)} of {len(order)} parts as they are"
        if len(chosen.data) >= len(self.work.model.data):
            refused.append(Refusal(variant, f"{left} it is no smaller"))
            return None
        scores, reason = self.work.verdict.judge(chosen.data)
        if reason:
            refused.append(Refusal(variant, f"{left}, {reason}"))
            return None
        return replace(chosen, scores=scores)


def _measure(work: _Work, offered: list[Offer], refused: list[Refusal], passes: list[PassSize]) -> Report:
    judging, golden, max_drop_points = work.verdict.samples, work.verdict.golden, work.verdict.max_drop_points
    everything = [Offer(FLOAT, work.model.data, work.verdict.reference), *offered]
    work.progress(f"timing {len(everything)} variants in turns, one thread")
    times = time_in_turns({offer.variant: offer.data for offer in everything}, FLOAT, judging)
    golden_set = take_golden_set(judging, golden)
    timed = []
    for offer in everything:
        work.progress(f"{offer.variant}: memory and load time")
        footprint = measure_footprint(offer.data, judging[0])
        accuracy = offer.scores.accuracy
        if len(golden_set.samples) < len(judging):
            accuracy = golden_set.golden.score(answers_of(offer.data, golden_set.samples, optimised=True)).accuracy
        timed.append(replace(offer, timing=times[offer.variant], footprint=footprint, golden_accuracy=accuracy))
    chosen, why = choose({offer.variant: (times[offer.variant].speed_up, len(offer.data)) for offer in offered})
    notes = []
    if len(judging) * max_drop_points < 100 and golden.classes is not None:
        notes.append(
            f"one answer of {len(judging)} is {100 / len(judging):.2f} points, more than may be lost: "
            "only a larger sample judges finely"
        )
    return Report(
        model_sha256=str(work.model.sha256),
        metric=golden.metric,
        samples=(len(work.calibrating), len(judging)),
        max_drop_points=max_drop_points,
        offered=tuple(timed),
        refused=tuple(refused),
        passes=tuple(passes),
        chosen=chosen,
        why_chosen=why,
        engine=f"onnxruntime {onnxruntime.__version__}",
        notes=tuple(notes),
        golden_set=golden_set,
    )


def _add_energy(report: Report, judging: Samples, meter: EnergyMeter | Power | None, progress: Progress) -> Report:
    if meter is None:
        return report
    if isinstance(meter, Power):
        energies = {
            offer.variant: estimate_energy(meter, offer.timing.p50_ms / 1e3) for offer in report.offered if offer.timing
        }
    else:
        progress(f"energy by {meter.source}, in turns with rest")
        try:
            energies = measure_energy({offer.variant: offer.data for offer in report.offered}, judging, meter)
        except (OSError, ValueError) as error:
            progress(f"energy is not told: {error}")
            return report
    return replace(
        report, offered=tuple(replace(offer, energy=energies.get(offer.variant)) for offer in report.offered)
    )
