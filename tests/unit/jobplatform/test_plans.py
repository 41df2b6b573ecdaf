"""Plans: each can be read, told apart, and means something."""

import pytest

from jobplatform import plans


def test_plans_are_found_by_their_names() -> None:
    assert {plan.name: plan for plan in plans.PLANS.values()} == plans.PLANS
    assert {"basic", "pro"} <= set(plans.PLANS)


@pytest.mark.parametrize("plan", plans.PLANS.values(), ids=lambda plan: plan.name)
def test_every_number_of_a_plan_allows_something(plan: plans.Plan) -> None:
    assert plan.name.isalnum(), "part of the names of resources"
    assert plan.burst >= plan.requests_per_second > 0
    # API Gateway's own limits: https://docs.aws.amazon.com/apigateway/latest/developerguide/limits.html
    assert plan.requests_per_second <= 10_000
    assert plan.burst <= 5_000
    assert plan.requests_per_day > plan.burst
    assert plan.max_queued > 0
    assert plan.max_waits > 0
    assert plan.weight >= 1
    assert plan.max_rows is None or plan.max_rows > 0
    assert plan.max_bytes is None or plan.max_bytes > 0


def test_the_dearer_plan_allows_no_less() -> None:
    def at_most(limit: int | None) -> float:
        return float("inf") if limit is None else limit

    for name in (
        "requests_per_second",
        "burst",
        "requests_per_day",
        "max_queued",
        "max_waits",
        "weight",
    ):
        assert getattr(plans.PRO, name) >= getattr(plans.BASIC, name)
    assert at_most(plans.PRO.max_rows) >= at_most(plans.BASIC.max_rows)
    assert at_most(plans.PRO.max_bytes) >= at_most(plans.BASIC.max_bytes)
