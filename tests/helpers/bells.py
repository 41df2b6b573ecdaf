"""What a queue is asked to send, and an SQS that takes a part of a batch only."""

import dataclasses
import json
import uuid
from typing import Any

from jobplatform import queue as queues


@dataclasses.dataclass(frozen=True)
class Bell:
    """A doorbell on its way into SQS."""

    job_id: uuid.UUID
    delay: int


def listen(queue: queues.Queue) -> list[Bell]:
    """A list that grows with every doorbell from now on."""
    heard: list[Bell] = []

    def hear(params: dict[str, Any], **_: Any) -> None:
        for entry in params.get("Entries", [params]):
            job_id = uuid.UUID(json.loads(entry["MessageBody"])["job_id"])
            heard.append(Bell(job_id, entry.get("DelaySeconds", 0)))

    for operation in ("SendMessage", "SendMessageBatch"):
        queue._client.meta.events.register(f"provide-client-params.sqs.{operation}", hear)
    return heard


def break_entries(queue: queues.Queue, every: int) -> None:
    """From now on SQS refuses every so-manieth entry of a batch, and takes the others."""

    def refuse(params: dict[str, Any], **_: Any) -> None:
        for index, entry in enumerate(params["Entries"]):
            if index % every == 0:
                # An invalid delay: SQS answers for this entry alone.
                entry["DelaySeconds"] = 9_999

    queue._client.meta.events.register("provide-client-params.sqs.SendMessageBatch", refuse)
