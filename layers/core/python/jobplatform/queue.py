"""Doorbells: SQS messages that say there is work, nothing else."""

import json
import math
import uuid
from collections.abc import Iterable
from typing import Any

MAX_DELAY_SECONDS = 900
_VERSION = 1


class Queue:
    """The queue of doorbells; `client` is a boto3 SQS client."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self.url = url

    def ring(self, job_id: uuid.UUID, *, after: float = 0.0) -> None:
        """Rings once, `after` seconds from now. The job's id is for the reader of a dead letter."""
        self._client.send_message(
            QueueUrl=self.url, MessageBody=body(job_id), DelaySeconds=delay_seconds(after)
        )

    def ring_all(self, due: Iterable[tuple[uuid.UUID, float]]) -> list[uuid.UUID]:
        """Rings for up to ten jobs (an SQS batch): the ids that SQS took."""
        due = list(due)
        entries = [
            {
                "Id": str(index),
                "MessageBody": body(job_id),
                "DelaySeconds": delay_seconds(after),
            }
            for index, (job_id, after) in enumerate(due)
        ]
        answer = self._client.send_message_batch(QueueUrl=self.url, Entries=entries)
        return [due[int(done["Id"])][0] for done in answer.get("Successful", [])]


def body(job_id: uuid.UUID) -> str:
    return json.dumps({"version": _VERSION, "job_id": str(job_id)})


def parse(text: str) -> uuid.UUID:
    """The job that a doorbell was rung for. Raises ValueError for what is no doorbell."""
    message = json.loads(text)
    if not isinstance(message, dict) or message.get("version") not in (_VERSION, _VERSION - 1):
        raise ValueError("not a doorbell of a version this worker knows")
    return uuid.UUID(message["job_id"])


def delay_seconds(after: float) -> int:
    """Rounded up: a doorbell that is early finds nothing due, and the job waits for the next tick."""
    return min(MAX_DELAY_SECONDS, max(0, math.ceil(after)))
