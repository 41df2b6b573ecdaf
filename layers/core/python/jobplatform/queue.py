"""Doorbells: SQS messages that say there is work, nothing else."""

import dataclasses
import datetime as dt
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_DELAY_SECONDS = 900
_TAKEN_SECONDS = 30
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

    def send(self, text: str) -> None:
        """Sends a message as it was, for an operator who redrives it."""
        self._client.send_message(QueueUrl=self.url, MessageBody=text)

    def give_back(self, receipt: str) -> None:
        """Lets a message that was received be delivered again at once."""
        self._client.change_message_visibility(
            QueueUrl=self.url, ReceiptHandle=receipt, VisibilityTimeout=0
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
    job_id = message.get("job_id")
    if not isinstance(job_id, str):
        raise ValueError("a doorbell that names no job")
    return uuid.UUID(job_id)


def delay_seconds(after: float) -> int:
    """Rounded up: a doorbell that is early finds nothing due, and the job waits for another."""
    return min(MAX_DELAY_SECONDS, max(0, math.ceil(after)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message that no worker could handle; `job_id` is None where it is no doorbell."""

    id: str
    receipt: str
    body: str
    sent_at: dt.datetime
    deliveries: int
    """How often it was received, looks at the dead letters included."""
    job_id: uuid.UUID | None


class DeadLetters:
    """The dead-letter queue; looking at it leaves everything where it is."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self.url = url

    def count(self) -> int:
        """About how many there are: SQS does not know better."""
        name = "ApproximateNumberOfMessages"
        answer = self._client.get_queue_attributes(QueueUrl=self.url, AttributeNames=[name])
        return int(answer["Attributes"][name])

    def look(self, *, limit: int) -> list[DeadLetter]:
        """Up to `limit` of them, visible to everybody else again at once."""
        found = self.take(limit=limit)
        for batch in _tens(found):
            self._client.change_message_visibility_batch(
                QueueUrl=self.url,
                Entries=[
                    {"Id": str(index), "ReceiptHandle": letter.receipt, "VisibilityTimeout": 0}
                    for index, letter in enumerate(batch)
                ],
            )
        return found

    def take(self, *, limit: int) -> list[DeadLetter]:
        """Up to `limit` of them; what is not deleted is visible again after half a minute."""
        found: dict[str, DeadLetter] = {}
        while len(found) < limit:
            answer = self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=min(10, limit - len(found)),
                VisibilityTimeout=_TAKEN_SECONDS,
                # Without waiting SQS asks some of its servers only.
                WaitTimeSeconds=1,
                MessageSystemAttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
            )
            letters = [_dead_letter(message) for message in answer.get("Messages", [])]
            if not letters:
                break
            found |= {letter.id: letter for letter in letters}
        return list(found.values())

    def delete(self, letters: Iterable[DeadLetter]) -> int:
        """How many SQS has deleted."""
        deleted = 0
        for batch in _tens(list(letters)):
            answer = self._client.delete_message_batch(
                QueueUrl=self.url,
                Entries=[
                    {"Id": str(index), "ReceiptHandle": letter.receipt}
                    for index, letter in enumerate(batch)
                ],
            )
            deleted += len(answer.get("Successful", []))
        return deleted


def _tens(letters: list[DeadLetter]) -> Iterator[list[DeadLetter]]:
    for start in range(0, len(letters), 10):
        yield letters[start : start + 10]


def _dead_letter(message: Mapping[str, Any]) -> DeadLetter:
    try:
        job_id = parse(message["Body"])
    except ValueError:
        job_id = None
    attributes = message["Attributes"]
    return DeadLetter(
        id=message["MessageId"],
        receipt=message["ReceiptHandle"],
        body=message["Body"],
        sent_at=dt.datetime.fromtimestamp(int(attributes["SentTimestamp"]) / 1000, dt.UTC),
        deliveries=int(attributes["ApproximateReceiveCount"]),
        job_id=job_id,
    )
