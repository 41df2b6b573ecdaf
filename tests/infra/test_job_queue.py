"""The rules of SQS and Lambda that emulators let pass are refused at synth."""

from datetime import timedelta

import pytest
from aws_cdk import App, Stack

from infra.bundling import Bundle
from infra.constructs.alarms import Alarms
from infra.constructs.job_queue import JobQueue
from infra.constructs.platform_function import FunctionLayers, PlatformFunction
from infra.targets import EMBEDDED


@pytest.fixture
def stack() -> Stack:
    return Stack(App(), "Test")


@pytest.fixture
def alarms(stack: Stack) -> Alarms:
    return Alarms(stack, "Alarms", target=EMBEDDED, email=None)


@pytest.fixture
def queue(stack: Stack, alarms: Alarms) -> JobQueue:
    return JobQueue(
        stack, "Jobs", consumer_timeout=timedelta(minutes=1), max_deliveries=5, alarms=alarms
    )


@pytest.fixture
def consumer(stack: Stack, alarms: Alarms) -> PlatformFunction:
    bundle = Bundle(EMBEDDED)
    return PlatformFunction(
        stack,
        "Consumer",
        name="worker",
        timeout=timedelta(minutes=1),
        memory_mb=128,
        environment={},
        bundle=bundle,
        layers=FunctionLayers(stack, "Layers", bundle=bundle, target=EMBEDDED),
        network=None,
        alarms=alarms,
        target=EMBEDDED,
    )


def test_visibility_over_twelve_hours_is_refused(stack: Stack, alarms: Alarms) -> None:
    with pytest.raises(ValueError, match="12 h at most"):
        JobQueue(
            stack, "Long", consumer_timeout=timedelta(hours=3), max_deliveries=5, alarms=alarms
        )


@pytest.mark.parametrize(
    ("timeout", "concurrency", "batch", "complaint"),
    [
        (timedelta(minutes=2), 2, 1, "six times"),
        (timedelta(minutes=1), 1, 1, "2 to 1000"),
        (timedelta(minutes=1), 1001, 1, "2 to 1000"),
        (timedelta(minutes=1), 2, 11, "1 to 10 messages"),
        (timedelta(minutes=1), 2, 0, "1 to 10 messages"),
    ],
)
def test_what_aws_would_refuse_is_refused(
    queue: JobQueue,
    consumer: PlatformFunction,
    timeout: timedelta,
    concurrency: int,
    batch: int,
    complaint: str,
) -> None:
    with pytest.raises(ValueError, match=complaint):
        queue.deliver_to(consumer, timeout=timeout, max_concurrency=concurrency, batch_size=batch)
