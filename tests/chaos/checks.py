"""The promises, checked against database, bucket and API when everything is quiet again."""

import collections
import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

from jobplatform.jobs import TRANSITIONS, JobStatus
from jobplatform.results import manifest_key
from tests.chaos.customers import Customers
from tests.chaos.expected import Expected, unpacked_sha256
from tests.chaos.ledger import Ledger, Submission
from tests.chaos.under_test import RETRIES, UnderTest

_FINAL = ("succeeded", "failed", "cancelled")
_REPLAYS = 40
_DOWNLOADS = 20
_RETRIED = "retried by an operator"
_JOBS = """
SELECT id::text, status, attempts, max_attempts, error_code, result_key, result_rows, result_bytes,
    result_sha256, result_deleted_at IS NOT NULL, compression, (metadata ->> 'submission')::integer
FROM jobplatform.jobs WHERE metadata ? 'submission'
"""


class Job:
    """A job's row, as far as it is checked."""

    submission: int

    def __init__(self, row: Any) -> None:
        (
            self.id,
            self.status,
            self.attempts,
            self.max_attempts,
            self.error_code,
            self.result_key,
            self.rows,
            self.bytes,
            self.sha256,
            self.result_deleted,
            self.compression,
            self.submission,
        ) = row


class Checks:
    def __init__(
        self,
        platform: UnderTest,
        ledger: Ledger,
        expected: Expected,
        customers: Customers,
        *,
        seed: int,
    ) -> None:
        self._platform = platform
        self._ledger = ledger
        self._expected = expected
        self._customers = customers
        self._rng = random.Random(f"{seed} checks")
        self.jobs = {row[0]: Job(row) for row in platform.sql(_JOBS)}

    def all(self) -> Iterator[str]:
        """Runs every check and says which comes next."""
        for check in (
            self._lost_or_doubled,
            self._states,
            self._transitions,
            self._attempts,
            self._results,
            self._bucket,
            self._downloads,
            self._keys,
            self._purge_of_everything,
        ):
            yield (check.__doc__ or "").rstrip(".")
            check()

    def _submission(self, job: Job) -> Submission:
        return self._ledger.submissions[job.submission]

    def _lost_or_doubled(self) -> None:
        """Every accepted job is there, once."""
        for job_id, submission in self._ledger.jobs():
            if job_id not in self.jobs and not submission.purged:
                self._ledger.violated("lost", f"job {job_id} was accepted and is not there")
        for submission in self._ledger.submissions:
            if len(submission.job_ids) > 1 and not submission.purged:
                self._ledger.violated(
                    "doubled",
                    f"submission {submission.intent.number} was answered with the jobs"
                    f" {', '.join(sorted(submission.job_ids))}",
                )
        made = collections.Counter(job.submission for job in self.jobs.values())
        for number, count in made.items():
            if count > 1 and not self._ledger.submissions[number].purged:
                self._ledger.violated("doubled", f"submission {number} made {count} jobs")

    def _states(self) -> None:
        """Every job has ended, and as it should."""
        for job in self.jobs.values():
            submission = self._submission(job)
            if job.status not in _FINAL:
                self._ledger.violated("stuck", f"job {job.id} is {job.status}")
            if job.status == "failed" and not submission.intent.hopeless:
                self._ledger.violated(
                    "given up",
                    f"job {job.id} ({submission.intent.template}) failed: {job.error_code},"
                    f" {job.attempts} attempts",
                )
            if job.status == "succeeded" and submission.intent.hopeless:
                self._ledger.violated("wrong bytes", f"job {job.id} cannot have succeeded")
            if job.status == "succeeded" and submission.cancel_accepted:
                self._ledger.violated(
                    "cancel ignored", f"job {job.id} succeeded after its cancel was accepted"
                )

    def _transitions(self) -> None:
        """The audit trail has allowed transitions only, one after the other."""
        chains: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
        for job_id, before, after in self._platform.sql(
            "SELECT job_id::text, from_status, to_status FROM jobplatform.transitions ORDER BY id"
        ):
            chains[job_id].append((before, after))
        for job in self.jobs.values():
            state = "queued"
            for before, after in chains[job.id]:
                if before != state or JobStatus(after) not in TRANSITIONS[JobStatus(before)]:
                    self._ledger.violated(
                        "forbidden transitions", f"job {job.id}: {state}, then {before} to {after}"
                    )
                state = after
            if state != job.status:
                self._ledger.violated(
                    "forbidden transitions", f"job {job.id} is {job.status}, its trail says {state}"
                )

    def _attempts(self) -> None:
        """No job had too many attempts, none is open, one published each result."""
        tries: dict[str, int] = dict(
            (str(job_id), int(number))
            for job_id, number in self._platform.sql(
                "SELECT a.job_id::text, count(*) FROM jobplatform.attempts AS a"
                " WHERE a.outcome IS DISTINCT FROM 'handed_over' AND a.started_at > coalesce("
                "(SELECT max(t.at) FROM jobplatform.transitions AS t WHERE t.job_id = a.job_id"
                f" AND t.reason = '{_RETRIED}'), '-infinity') GROUP BY a.job_id"
            )
        )
        for job in self.jobs.values():
            limit = len(RETRIES) + 1
            if max(job.attempts, tries.get(job.id, 0)) > limit:
                self._ledger.violated(
                    "too many attempts",
                    f"job {job.id} had {tries.get(job.id)} attempts and counts {job.attempts}",
                )
        self._ledger.counts["attempts"] = self._platform.sql(
            "SELECT count(*) FROM jobplatform.attempts"
        )[0][0]
        for job_id, token in self._platform.sql(
            "SELECT j.id::text, a.token::text FROM jobplatform.attempts AS a JOIN jobplatform.jobs"
            " AS j ON j.id = a.job_id WHERE a.finished_at IS NULL AND j.finished_at IS NOT NULL"
        ):
            self._ledger.violated("stuck", f"attempt {token} of the ended job {job_id} is open")
        published = collections.defaultdict(list)
        for job_id, token in self._platform.sql(
            "SELECT job_id::text, upload_token::text FROM jobplatform.attempts"
            " WHERE outcome = 'published'"
        ):
            published[job_id].append(token)
        for job in self.jobs.values():
            tokens = published[job.id]
            if job.status == "succeeded" and (
                len(tokens) != 1 or tokens[0] not in (job.result_key or "")
            ):
                self._ledger.violated(
                    "doubled",
                    f"the result {job.result_key} of job {job.id} was published by the attempts"
                    f" {tokens or 'of nobody'}",
                )
            if job.status != "succeeded" and tokens:
                self._ledger.violated("doubled", f"job {job.id} is {job.status} and was published")

    def _results(self) -> None:
        """Each result is the database's own COPY."""
        for job in self.jobs.values():
            if job.status == "succeeded" and not job.result_deleted:
                self._result(job)

    def _result(self, job: Job) -> None:
        content = self._read(job.result_key)
        if content is None:
            self._ledger.violated("lost", f"the result of job {job.id} is not in the bucket")
            return
        intent = self._submission(job).intent
        manifest = json.loads(self._read(manifest_key(job.result_key)) or b"{}")
        facts = (job.rows, job.bytes, job.sha256)
        if facts != (manifest.get("rows"), manifest.get("bytes"), manifest.get("sha256")):
            self._ledger.violated("wrong bytes", f"job {job.id}: its manifest says something else")
        if (len(content), hashlib.sha256(content).hexdigest()) != facts[1:]:
            self._ledger.violated("wrong bytes", f"job {job.id}: not the bytes that were published")
        wanted = self._expected.sha256(intent.template, intent.parameters)
        if unpacked_sha256(content, job.compression) != wanted:
            self._ledger.violated(
                "wrong bytes", f"job {job.id} ({intent.template} {intent.parameters})"
            )
        self._ledger.count("results compared")

    def _read(self, key: str) -> bytes | None:
        s3 = self._platform.s3
        try:
            body = s3.get_object(Bucket=self._platform.bucket, Key=key)["Body"]
        except s3.exceptions.NoSuchKey:
            return None
        content: bytes = body.read()
        return content

    def _bucket(self) -> None:
        """Nothing else is in the bucket."""
        kept = {
            name
            for job in self.jobs.values()
            if job.status == "succeeded" and not job.result_deleted
            for name in (job.result_key, manifest_key(job.result_key))
        }
        for key in self._keys_in_bucket():
            if key not in kept:
                self._ledger.violated("orphans", f"object {key}")
        for upload in self._uploads():
            self._ledger.violated("orphans", f"unfinished upload of {upload}")

    def _keys_in_bucket(self) -> list[str]:
        pages = self._platform.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._platform.bucket
        )
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def _uploads(self) -> list[str]:
        found = self._platform.s3.list_multipart_uploads(Bucket=self._platform.bucket)
        return [upload["Key"] for upload in found.get("Uploads", [])]

    def _downloads(self) -> None:
        """Some results arrive at their clients."""
        ready = [
            job
            for job in self.jobs.values()
            if job.status == "succeeded" and not job.result_deleted
        ]
        for job in self._rng.sample(ready, min(_DOWNLOADS, len(ready))):
            self._customers.check_download(job.id, self._submission(job))

    def _keys(self) -> None:
        """Keys name their jobs, refuse other requests, and are forgotten in time."""
        keyed = [
            submission
            for submission in self._ledger.submissions
            if submission.intent.key and submission.job_ids and not submission.purged
        ]
        for submission in self._rng.sample(keyed, min(_REPLAYS, len(keyed))):
            number = submission.intent.number
            answer = self._customers.replay(submission)
            if answer is None or answer.status_code != 202:
                text = answer and f"{answer.status_code} {answer.text[:300]}"
                self._ledger.violated("leaked keys", f"replay of submission {number}: {text}")
            elif answer.json()["id"] not in submission.job_ids:
                self._ledger.violated("doubled", f"the replay of submission {number} made a job")
            answer = self._customers.replay(submission, changed=True)
            if answer is None or answer.status_code != 422:
                status = answer and answer.status_code
                self._ledger.violated(
                    "leaked keys", f"the key of submission {number} for another request: {status}"
                )
        self._platform.sql(
            "UPDATE jobplatform.jobs SET idempotency_expires_at = now() - interval '1 s'"
            " WHERE idempotency_key IS NOT NULL"
        )
        self._platform.invoke("purge")
        left = self._platform.sql(
            "SELECT count(*) FROM jobplatform.jobs WHERE idempotency_key IS NOT NULL"
        )[0][0]
        if left:
            self._ledger.violated("leaked keys", f"{left} keys are kept past their time")

    def _purge_of_everything(self) -> None:
        """A purge of everything that has ended leaves nothing."""
        self._platform.sql(
            "UPDATE jobplatform.jobs SET expires_at = now() - interval '1 s', result_expires_at ="
            " CASE WHEN result_key IS NOT NULL THEN now() - interval '1 day' END"
            " WHERE finished_at IS NOT NULL"
        )
        self._platform.invoke("purge")
        for table in ("jobs", "attempts", "transitions"):
            condition = " WHERE finished_at IS NOT NULL" if table == "jobs" else ""
            left = self._platform.sql(f"SELECT count(*) FROM jobplatform.{table}{condition}")[0][0]
            if left and not self._ledger.violations["stuck"]:
                self._ledger.violated("orphans", f"{left} rows in {table} after a purge")
        left_objects = [*self._keys_in_bucket(), *self._uploads()]
        if left_objects and not self._ledger.violations["stuck"]:
            self._ledger.violated(
                "orphans", f"{len(left_objects)} objects after a purge, such as {left_objects[0]}"
            )
