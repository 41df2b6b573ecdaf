"""SQS calls it with a doorbell; it runs the next job and answers which doorbells to keep."""

import dataclasses
import functools
import signal
import threading
import time
from typing import Any

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    process_partial_response,
)
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from jobplatform import aws, database, faults, queue
from jobplatform.observability import logger, metrics
from jobplatform.settings import (
    DatabaseSettings,
    DataDatabaseSettings,
    FaultSettings,
    JobSettings,
    QueueSettings,
    ResultSettings,
    WorkerSettings,
)
from jobplatform.usecases import run_job

_GIVE_BACK_SECONDS = 1.5
# A batch of which all failed is answered like any other, not raised: nothing is wrong with us then.
processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)


@functools.cache
def _worker() -> run_job.Worker:
    faults.switch_on(FaultSettings.from_env(), function="worker")
    platform, data = DatabaseSettings.from_env(), DataDatabaseSettings.from_env()
    results = ResultSettings.from_env()
    worker = run_job.Worker(
        name="",
        engine=database.create_engine(platform, application_name="jobplatform-worker"),
        data=data if data.url else platform,
        bucket=aws.bucket(results),
        queue=queue.Queue(aws.client("sqs"), QueueSettings.from_env().url),
        jobs=JobSettings.from_env(),
        results=results,
        settings=WorkerSettings.from_env(),
    )
    _give_back_when_told_to_end(worker)
    return worker


def _give_back_when_told_to_end(worker: run_job.Worker) -> None:
    """Lambda lets an invocation finish when new code comes; other runtimes end it with SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)

    def end(signal_number: int, frame: object) -> None:
        # In a thread: this one may be in the middle of anything. Who sent this does not wait long.
        giving = threading.Thread(target=run_job.give_back, args=(worker,), daemon=True)
        giving.start()
        giving.join(_GIVE_BACK_SECONDS)
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def handle_record(record: SQSRecord, lambda_context: LambdaContext) -> None:
    """A doorbell that cannot be read fails, and so comes to the dead-letter queue, at once."""
    try:
        bell = queue.parse(record.body)
    except ValueError:
        _worker().queue.give_back(record.receipt_handle)
        raise
    worker = dataclasses.replace(_worker(), name=lambda_context.aws_request_id)
    done = run_job.drain(
        worker,
        bell=bell,
        seconds_left=lambda: lambda_context.get_remaining_time_in_millis() / 1000,
        clock=time.monotonic,
    )
    metrics.add_metric(name="JobsRun", unit=MetricUnit.Count, value=done)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> Any:
    metrics.add_metric(name="Doorbells", unit=MetricUnit.Count, value=len(event["Records"]))
    return process_partial_response(
        event=event, record_handler=handle_record, processor=processor, context=context
    )
