"""The traffic: clients that submit, look, cancel and download, and repeat what was not answered."""

import concurrent.futures
import datetime as dt
import heapq
import queue
import random
import re
import threading
import time
from typing import Any

import httpx

from tests.chaos.expected import Expected, unpacked_sha256
from tests.chaos.ledger import Ledger, Submission
from tests.chaos.under_test import Tenant, UnderTest

_SENDERS = 3
_LOOKERS = 2
_MOST_UNFINISHED = 60
_INTERNAL = re.compile(
    r"\bSELECT\b|\bINSERT\b|\bUPDATE\b|pg8000|sqlalchemy|botocore|Traceback|\.py\b|127\.0\.0\.1",
)
_LOOK_AGAIN = 0.2
_AGAIN = 0.3
"""Seconds before a request is repeated."""


class Customers:
    """Runs until everything is submitted or the time is over; `stop` ends the looking as well."""

    def __init__(
        self, platform: UnderTest, ledger: Ledger, expected: Expected, *, seed: int, minutes: float
    ) -> None:
        self._platform = platform
        self._ledger = ledger
        self._expected = expected
        self._seed = seed
        self._until = time.monotonic() + minutes * 60
        self._http = httpx.Client(
            timeout=35, limits=httpx.Limits(max_connections=30), trust_env=False
        )
        self._waiting: queue.SimpleQueue[Submission] = queue.SimpleQueue()
        for submission in ledger.submissions:
            self._waiting.put(submission)
        self._cancels: list[tuple[float, int, Submission]] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._bursts = concurrent.futures.ThreadPoolExecutor(8, thread_name_prefix="burst")
        self._threads = [
            threading.Thread(target=work, args=(number,), name=f"{name}-{number}", daemon=True)
            for name, work, many in (
                ("send", self._send_all, _SENDERS),
                ("look", self._look, _LOOKERS),
            )
            for number in range(many)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def all_sent(self) -> bool:
        return not any(
            thread.is_alive() for thread in self._threads if thread.name.startswith("send")
        )

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=120)
        self._bursts.shutdown(cancel_futures=True)

    def close(self) -> None:
        self._http.close()

    def _send_all(self, number: int) -> None:
        rng = random.Random(f"{self._seed} sender {number}")
        while time.monotonic() < self._until and not self._stopped.is_set():
            try:
                submission = self._waiting.get_nowait()
            except queue.Empty:
                return
            while self._ledger.unfinished > _MOST_UNFINISHED and time.monotonic() < self._until:
                self._stopped.wait(0.2)
            self.submit(submission)
            self._stopped.wait(rng.uniform(0, 0.3))

    # Submitting

    def submit(self, submission: Submission) -> None:
        """Until it is accepted, where it has a key; without one it is sent once."""
        intent = submission.intent
        body = request_of(submission)
        if intent.at_once == 1:
            self._submit(submission, body)
            return
        self._ledger.count("sent at once", intent.at_once)
        requests = [
            self._bursts.submit(self._submit, submission, body) for _ in range(intent.at_once)
        ]
        concurrent.futures.wait(requests)

    def _submit(self, submission: Submission, body: dict[str, Any]) -> None:
        intent = submission.intent
        headers = {"Idempotency-Key": intent.key} if intent.key else {}
        while not self._stopped.is_set():
            asked = time.monotonic()
            answer = self._call("POST", "/jobs", intent.client, json=body, headers=headers)
            if answer is not None and answer.status_code == 202:
                job = answer.json()
                first = not submission.job_ids
                self._ledger.accepted(submission, job["id"])
                self._ledger.seen(job["id"], job["status"], asked=asked)
                if "idempotent-replayed" in answer.headers:
                    self._ledger.count("replays")
                if first and intent.cancel_after is not None:
                    with self._lock:
                        when = time.monotonic() + intent.cancel_after
                        heapq.heappush(self._cancels, (when, intent.number, submission))
                return
            if answer is not None and answer.status_code in (400, 404, 413, 415, 422):
                self._ledger.violated(
                    "refused", f"submission {intent.number}: {answer.status_code} {answer.text}"
                )
                return
            if answer is None or answer.status_code >= 500:
                self._ledger.count("requests that failed")
                submission.unanswered = True
                if intent.key is None:
                    return
            self._stopped.wait(_AGAIN)

    # Looking

    def _look(self, number: int) -> None:
        rng = random.Random(f"{self._seed} looker {number}")
        while not self._stopped.is_set():
            due = self._due_cancel()
            if due is not None:
                self._cancel(due)
                continue
            jobs = self._ledger.jobs()
            if not jobs:
                self._stopped.wait(0.1)
                continue
            # Mostly those that were just made.
            job_id, submission = jobs[-1 - int(len(jobs) * rng.random() ** 3)]
            if rng.random() < 0.1:
                self._look_as_another(job_id, submission, rng)
            else:
                self._look_at(job_id, submission, rng)
            self._stopped.wait(_LOOK_AGAIN)

    def _due_cancel(self) -> Submission | None:
        with self._lock:
            if self._cancels and self._cancels[0][0] <= time.monotonic():
                return heapq.heappop(self._cancels)[2]
        return None

    def _look_at(self, job_id: str, submission: Submission, rng: random.Random) -> None:
        asked = time.monotonic()
        answer = self._call("GET", f"/jobs/{job_id}", submission.intent.client)
        if answer is None:
            return
        if answer.status_code == 404 and not submission.purged:
            self._ledger.violated("lost", f"job {job_id} was accepted and then not found")
        if answer.status_code != 200:
            return
        job = answer.json()
        self._ledger.seen(job_id, job["status"], asked=asked)
        if job["error"] is not None and _INTERNAL.search(str(job["error"])):
            self._ledger.violated("leaked causes", f"job {job_id}: {job['error']}")
        if job["status"] == "succeeded" and rng.random() < 0.1 and not submission.expired:
            self.check_download(job_id, submission)

    def _look_as_another(self, job_id: str, submission: Submission, rng: random.Random) -> None:
        others = [name for name in self._platform.tenants if name != submission.intent.client]
        method, path = rng.choice(
            (("GET", ""), ("GET", "/download?redirect=false"), ("POST", "/cancel"))
        )
        other = rng.choice(others)
        answer = self._call(method, f"/jobs/{job_id}{path}", other)
        self._ledger.count("looks at another's job")
        if answer is not None and answer.status_code < 400:
            self._ledger.violated(
                "seen by others", f"{other}: {method} {path} of job {job_id}: {answer.status_code}"
            )

    def check_download(self, job_id: str, submission: Submission) -> None:
        """Downloads a result as a client does and compares its bytes."""
        path = f"/jobs/{job_id}/download?redirect=false"
        answer = self._call("GET", path, submission.intent.client)
        if answer is None or answer.status_code != 200:
            gone = answer is not None and answer.status_code in (404, 409, 410)
            if gone and not (submission.expired or submission.purged or submission.retried):
                assert answer is not None
                self._ledger.violated("lost", f"result of job {job_id}: {answer.status_code}")
            return
        try:
            content = self._http.get(answer.json()["url"])
        except httpx.HTTPError:
            return
        if content.status_code == 404 and submission.expired:
            return
        self._ledger.count("downloads")
        intent = submission.intent
        wanted = self._expected.sha256(intent.template, intent.parameters)
        if (
            content.status_code != 200
            or unpacked_sha256(content.content, intent.compression) != wanted
        ):
            self._ledger.violated(
                "wrong bytes", f"download of job {job_id}: status {content.status_code}"
            )

    # Cancelling

    def _cancel(self, submission: Submission) -> None:
        for job_id in submission.job_ids:
            for _ in range(20):
                asked = time.monotonic()
                answer = self._call("POST", f"/jobs/{job_id}/cancel", submission.intent.client)
                if answer is not None and answer.status_code == 202:
                    submission.cancel_accepted = True
                    self._ledger.count("cancels accepted")
                    self._ledger.seen(job_id, answer.json()["status"], asked=asked)
                    break
                if answer is not None and answer.status_code == 404 and not submission.purged:
                    self._ledger.violated("lost", f"job {job_id} was not found to be cancelled")
                if answer is not None and answer.status_code < 500 and answer.status_code != 429:
                    break
                self._stopped.wait(_AGAIN)

    def _call(self, method: str, path: str, client: str, **request: Any) -> httpx.Response | None:
        """The answer, or None where there was none."""
        tenant: Tenant = self._platform.tenants[client]
        headers = {"x-api-key": tenant.api_key, **request.pop("headers", {})}
        try:
            answer = self._http.request(
                method, self._platform.api_url + path, headers=headers, **request
            )
        except httpx.HTTPError:
            return None
        if answer.status_code >= 400 and _INTERNAL.search(answer.text):
            self._ledger.violated("leaked causes", f"{method} {path}: {answer.text[:300]}")
        return answer

    # When things are quiet

    def replay(self, submission: Submission, *, changed: bool = False) -> httpx.Response | None:
        """The same request again, or with `changed` another one with the same key."""
        body = request_of(submission)
        if changed:
            body = {**body, "metadata": {**body["metadata"], "changed": True}}
        assert submission.intent.key is not None
        headers = {"Idempotency-Key": submission.intent.key}
        return self._call("POST", "/jobs", submission.intent.client, json=body, headers=headers)


def request_of(submission: Submission) -> dict[str, Any]:
    """The body, which is the same in each repetition."""
    intent = submission.intent
    body = {
        "template_name": intent.template,
        "parameters": intent.parameters,
        "compression": intent.compression,
        "metadata": {"submission": intent.number},
    }
    if intent.run_in is not None:
        if submission.run_at is None:
            moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=intent.run_in)
            submission.run_at = moment.isoformat()
        body["run_at"] = submission.run_at
    return body
