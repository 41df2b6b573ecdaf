"""What was asked, what was answered, and what is wrong with it; shared by all threads of a run."""

import collections
import dataclasses
import threading
import time

from tests.chaos.plan import Intent

PROMISES = {
    "lost": "an accepted job is there and ends",
    "doubled": "one request, one job; one job, one published result",
    "stuck": "every job is final soon after things are quiet",
    "given up": "a job that can be done is done",
    "wrong bytes": "a result is the database's own COPY, and whole",
    "orphans": "nothing is in the bucket but published results",
    "leaked keys": "an Idempotency-Key names its job, then nothing, and never blocks",
    "forbidden transitions": "only the transitions of the picture, without a gap",
    "too many attempts": "a job has as many attempts as its settings say",
    "cancel ignored": "a job whose cancel was accepted has no result",
    "seen by others": "another client's job does not exist",
    "leaked causes": "no answer of the API has an internal error in it",
    "refused": "a request that is right is not refused",
}


@dataclasses.dataclass
class Submission:
    """An intent and what came of it."""

    intent: Intent
    job_ids: set[str] = dataclasses.field(default_factory=set)
    """Of every 202 that it was answered."""
    run_at: str | None = None
    """As it was sent; the same in every repetition."""
    unanswered: bool = False
    """Sent, and nobody knows whether it was accepted."""
    cancel_accepted: bool = False
    retried: bool = False
    """By an operator, after it had failed or was cancelled."""
    purged: bool = False
    """Its time was moved on until the purge may take it."""
    expired: bool = False
    """Its result's time was."""


class Ledger:
    def __init__(self, intents: list[Intent]) -> None:
        self.submissions = [Submission(intent) for intent in intents]
        self.counts: collections.Counter[str] = collections.Counter()
        self.violations: dict[str, list[str]] = {promise: [] for promise in PROMISES}
        self.unfinished = 0
        """Jobs that wait or run, when they were last counted."""
        self.ended = 0
        self._by_job: dict[str, Submission] = {}
        self._final: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self.started = time.monotonic()

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def violated(self, promise: str, what: str) -> None:
        with self._lock:
            if what not in self.violations[promise]:
                self.violations[promise].append(what)

    @property
    def violation_count(self) -> int:
        with self._lock:
            return sum(len(found) for found in self.violations.values())

    def accepted(self, submission: Submission, job_id: str) -> None:
        with self._lock:
            if job_id not in self._by_job:
                self.counts["accepted"] += 1
            submission.job_ids.add(job_id)
            self._by_job[job_id] = submission

    def seen(self, job_id: str, status: str, *, asked: float) -> None:
        """A status that the API answered to a question of that time: what has ended stays so."""
        with self._lock:
            before, since = self._final.get(job_id, (status, 0.0))
            submission = self._by_job.get(job_id)
            if status in ("succeeded", "failed", "cancelled"):
                self._final[job_id] = (status, time.monotonic())
            # An answer can be overtaken by that to a later question.
            changed = before != status and asked > since
            if changed and not (submission and submission.retried):
                self.violations["forbidden transitions"].append(
                    f"job {job_id} was {before} and then {status}"
                )

    def submission_of(self, job_id: str) -> Submission | None:
        with self._lock:
            return self._by_job.get(job_id)

    def jobs(self) -> list[tuple[str, Submission]]:
        with self._lock:
            return list(self._by_job.items())
