"""What people read of a plan: the variant is named where it is not the model as it was given."""

from __future__ import annotations

from dataclasses import replace

from mesh.core.plan import FLOAT
from mesh.core.report import DeploymentReport
from mesh.planning.explain import describe
from nodes.render import plan_table, status_table
from tests.wire.coordinator_material import DEPLOYMENT


def texts(variant: str, of_stage: str = FLOAT) -> list[str]:
    stages = tuple(replace(stage, variant=of_stage) for stage in DEPLOYMENT.plan.stages)
    plan = replace(DEPLOYMENT.plan, stages=stages, variant=variant)
    report = DeploymentReport(replace(DEPLOYMENT, plan=plan), "active", "", (), ())
    return [plan_table(plan, {}), describe(plan, str), status_table([report])]


def test_the_variant_of_a_deployment_is_named() -> None:
    assert all("int8" in text for text in texts("int8"))
    table, _, status = texts(FLOAT)
    assert FLOAT not in table and FLOAT not in status


def test_the_variant_of_a_stage_goes_before_that_of_the_model() -> None:
    table, explained, _ = texts("int8", "fp16")
    for text in (table, explained):
        assert "fp16" in text and "int8" not in text
