"""What goes wrong during a run, in an order that the seed decides."""

import contextlib
import json
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from jobclient import errors as client_errors
from jobplatform import queue as queues
from tests.chaos.ledger import Ledger
from tests.chaos.servers import Database, Functions
from tests.chaos.under_test import LEASE_SECONDS, UnderTest

_PAUSE = LEASE_SECONDS + 5.0
"""Long enough for the next attempt to have begun."""
_OUTAGE = (1.5, 4.0)
_JOBS_BETWEEN = (2, 8)
"""Jobs that end between one trouble and the next: on a slow machine there is less of both."""
_SECONDS_BETWEEN = (1.5, 5.0)
"""At least and at most."""

# Of every visit of a point, in every function, all the time. Names and actions: jobplatform.faults.
_ALWAYS: tuple[dict[str, Any], ...] = (
    {"at": "submit.*", "action": "kill", "probability": 0.01},
    {"at": "submit.*", "action": "raise", "probability": 0.01},
    {"at": "cancel.*", "action": "kill", "probability": 0.03},
    {"at": "claim.*", "action": "kill", "probability": 0.01},
    {"at": "claim.*", "action": "raise", "probability": 0.01},
    {"at": "export.*", "action": "kill", "probability": 0.004},
    {"at": "export.*", "action": "raise", "probability": 0.004},
    {"at": "export.*", "action": "pause", "probability": 0.002, "seconds": _PAUSE},
    {"at": "upload.*", "action": "kill", "probability": 0.012},
    {"at": "upload.*", "action": "raise", "probability": 0.012},
    {"at": "upload.*", "action": "pause", "probability": 0.006, "seconds": _PAUSE},
    {"at": "publish.*", "action": "kill", "probability": 0.015},
    {"at": "publish.*", "action": "raise", "probability": 0.015},
    {"at": "publish.before", "action": "pause", "probability": 0.02, "seconds": _PAUSE},
    {"at": "heartbeat", "action": "raise", "probability": 0.05},
    {"at": "heartbeat", "action": "delay", "probability": 0.05, "seconds": 2.0},
    {"at": "dispatch.*", "action": "kill", "probability": 0.02},
    {"at": "dispatch.*", "action": "raise", "probability": 0.02},
    {"at": "clean.*", "action": "kill", "probability": 0.03},
    {"at": "purge.*", "action": "kill", "probability": 0.05},
    {"at": "purge.*", "action": "raise", "probability": 0.05},
    {"at": "s3.*", "action": "error", "probability": 0.01},
    {"at": "s3.*", "action": "unreachable", "probability": 0.01},
    {"at": "s3.*", "action": "twice", "probability": 0.02},
    {"at": "s3.*", "action": "lost_answer", "probability": 0.01},
    {"at": "s3.*", "action": "delay", "probability": 0.02, "seconds": 0.5},
    {"at": "sqs.*", "action": "error", "probability": 0.02},
    {"at": "sqs.*", "action": "unreachable", "probability": 0.02},
    {"at": "sqs.*", "action": "twice", "probability": 0.05},
    {"at": "sqs.*", "action": "lost_answer", "probability": 0.02},
    {"at": "sqs.*", "action": "delay", "probability": 0.03, "seconds": 0.5},
)


class Troubles:
    """One trouble after the other in a thread of its own, and the clockwork beside them."""

    def __init__(
        self,
        platform: UnderTest,
        ledger: Ledger,
        *,
        seed: int,
        without_dispatcher: bool = False,
    ) -> None:
        self._platform = platform
        self._ledger = ledger
        self._seed = seed
        self._rng = random.Random(f"{seed} troubles")
        self._functions = Functions(platform.target, platform.function_names)
        self._database = Database(platform.target)
        self._stopped = threading.Event()
        self._outages: dict[str, dict[str, Any]] = {}
        self._mappings = platform.lambda_.list_event_source_mappings(
            FunctionName=platform.function_names["worker"]
        )["EventSourceMappings"]
        self._kinds: list[tuple[int, Callable[[], None]]] = [
            (5, self._kill_worker),
            (2, self._kill_other_function),
            (3, self._pause_worker),
            (1, self._kill_session),
            (1, self._restart_database),
            (3, self._outage),
            (2, self._silence),
            (4, self._mix_up_doorbells),
            (3, self._ring_for_nothing),
            (2, self._end_leases_early),
            (2, self._let_time_pass),
            (2, self._retry_what_failed),
        ]
        clockwork: list[tuple[str, float, Callable[[], None]]] = [("purge", 10.0, self._purge)]
        if not without_dispatcher:
            clockwork += [("tick", 1.0, self._tick), ("second tick", 7.3, self._tick)]
        self._threads = [threading.Thread(target=self._run, name="troubles", daemon=True)] + [
            threading.Thread(target=self._repeat, args=(seconds, work), name=name, daemon=True)
            for name, seconds, work in clockwork
        ]
        self._stop_ticking = threading.Event()

    def start(self) -> None:
        self._write_script()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """From here on nothing is broken any more."""
        self._stopped.set()
        self._threads[0].join(timeout=120)
        self._platform.faults_file.unlink(missing_ok=True)
        self._functions.resume_all()
        for mapping in self._mappings:
            self._enable(mapping, True)
        self._stop_ticking.set()
        for thread in self._threads[1:]:
            thread.join(timeout=120)
        self._count_faults()

    def kill_every_worker(self) -> None:
        """Also those whose work nobody waits for any more."""
        self._functions.kill_all("worker")

    def close(self) -> None:
        self._functions.resume_all()

    def reap(self) -> None:
        self._database.reap()

    def _run(self) -> None:
        weights = [weight for weight, _ in self._kinds]
        while self._wait_for_the_next():
            (kind,) = self._rng.choices([kind for _, kind in self._kinds], weights)
            try:
                kind()
            except Exception as error:
                # What was broken before can be in the way of the next trouble.
                self._ledger.count(f"troubles that failed: {type(error).__name__}")

    def _wait_for_the_next(self) -> bool:
        """False when there shall be none any more."""
        ended = self._ledger.ended + self._rng.randint(*_JOBS_BETWEEN)
        least, most = _SECONDS_BETWEEN
        deadline = time.monotonic() + most
        self._stopped.wait(least)
        while self._ledger.ended < ended and time.monotonic() < deadline:
            if self._stopped.wait(0.1):
                break
        return not self._stopped.is_set()

    def _repeat(self, seconds: float, work: Callable[[], None]) -> None:
        while not self._stop_ticking.wait(seconds):
            with contextlib.suppress(Exception):
                work()

    # The clockwork, which is as mortal as everything else

    def _tick(self) -> None:
        self._platform.invoke("dispatcher")
        self._ledger.count("ticks")

    def _purge(self) -> None:
        self._platform.invoke("purge")
        self._ledger.count("purges")

    # Troubles

    def _kill_worker(self) -> None:
        if self._functions.kill("worker", self._rng):
            self._ledger.count("kills")

    def _kill_other_function(self) -> None:
        if self._functions.kill(self._rng.choice(("api", "dispatcher", "purge")), self._rng):
            self._ledger.count("kills")

    def _pause_worker(self) -> None:
        if self._functions.pause("worker", self._rng, _PAUSE):
            self._ledger.count("pauses")

    def _kill_session(self) -> None:
        if self._database.kill_session(self._rng):
            self._ledger.count("outages of PostgreSQL")

    def _restart_database(self) -> None:
        with self._database.stopped(immediately=self._rng.random() < 0.5):
            self._ledger.count("outages of PostgreSQL")
            self._stopped.wait(self._rng.uniform(*_OUTAGE) / 2)

    def _outage(self) -> None:
        service = self._rng.choice(("s3", "sqs"))
        action = self._rng.choice(("unreachable", "error", "lost_answer"))
        self._outages[service] = {"at": f"{service}.*", "action": action, "probability": 1}
        self._write_script()
        self._ledger.count(f"outages of {service.upper()}")
        try:
            self._stopped.wait(self._rng.uniform(*_OUTAGE))
        finally:
            del self._outages[service]
            self._write_script()

    def _silence(self) -> None:
        """Workers go on, but nothing is heard of them: as where only their way here is cut."""
        self._outages["heartbeat"] = {"at": "heartbeat", "action": "raise", "probability": 1}
        self._write_script()
        self._ledger.count("silences")
        try:
            self._stopped.wait(LEASE_SECONDS + self._rng.uniform(1, 4))
        finally:
            del self._outages["heartbeat"]
            self._write_script()

    def _write_script(self) -> None:
        script = {"seed": self._seed, "rules": [*self._outages.values(), *_ALWAYS]}
        file = self._platform.faults_file
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(script))
        unfinished.replace(file)

    def _mix_up_doorbells(self) -> None:
        """While nobody is at the door: some get lost, some are doubled, some come late."""
        for mapping in self._mappings:
            self._enable(mapping, False)
        try:
            self._stopped.wait(self._rng.uniform(0.5, 2.5))
            sqs, url = self._platform.sqs, self._platform.queue_url
            for _ in range(5):
                answer = sqs.receive_message(
                    QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=5
                )
                for message in answer.get("Messages", []):
                    self._mix_up(sqs, url, message)
        finally:
            for mapping in self._mappings:
                self._enable(mapping, True)

    def _mix_up(self, sqs: Any, url: str, message: dict[str, Any]) -> None:
        draw = self._rng.random()
        if draw < 0.4:
            self._ledger.count("doorbells lost")
        elif draw < 0.7:
            for _ in range(2):
                sqs.send_message(QueueUrl=url, MessageBody=message["Body"])
            self._ledger.count("doorbells doubled")
        else:
            delay = self._rng.randint(1, 6)
            sqs.send_message(QueueUrl=url, MessageBody=message["Body"], DelaySeconds=delay)
            self._ledger.count("doorbells late")
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])

    def _enable(self, mapping: dict[str, Any], enabled: bool) -> None:
        self._platform.lambda_.update_event_source_mapping(UUID=mapping["UUID"], Enabled=enabled)

    def _ring_for_nothing(self) -> None:
        jobs = [job_id for job_id, _ in self._ledger.jobs()]
        for _ in range(self._rng.randint(2, 8)):
            known = jobs and self._rng.random() < 0.7
            job_id = (
                self._rng.choice(jobs) if known else str(uuid.UUID(int=self._rng.getrandbits(128)))
            )
            body = queues.body(uuid.UUID(job_id))
            if self._rng.random() < 0.1:
                body = "not a doorbell"
            self._platform.sqs.send_message(QueueUrl=self._platform.queue_url, MessageBody=body)
            self._ledger.count("doorbells for nothing")

    # The clock

    def _end_leases_early(self) -> None:
        """As if the clock had jumped: workers that are alive and well are taken for lost."""
        ended = self._platform.sql(
            "UPDATE jobplatform.jobs SET lease_expires_at = now() - interval '1 s' WHERE id IN"
            " (SELECT id FROM jobplatform.jobs WHERE status = 'running' ORDER BY random() LIMIT 1)"
            " AND status = 'running' RETURNING id"
        )
        self._ledger.count("leases ended early", len(ended))

    def _let_time_pass(self) -> None:
        """Results expire, jobs come of age, and what was to run later is due."""
        final = [
            (job_id, submission)
            for job_id, submission in self._ledger.jobs()
            if not submission.intent.cancel_after and not submission.purged
        ]
        for job_id, submission in self._rng.sample(final, min(3, len(final))):
            # First noted, then done: nobody may take it for a loss in between.
            before = submission.expired, submission.purged
            everything = self._rng.random() < 0.4
            submission.expired, submission.purged = True, everything
            age = ", expires_at = now() - interval '1 s'" if everything else ""
            moved = self._platform.sql(
                "UPDATE jobplatform.jobs SET result_expires_at = CASE WHEN result_key IS NOT NULL"
                f" THEN now() - interval '2 h' END{age}"
                " WHERE id = CAST(:id AS uuid) AND finished_at IS NOT NULL RETURNING id",
                id=job_id,
            )
            if moved:
                self._ledger.count("results and jobs out of date")
            else:
                submission.expired, submission.purged = before
        self._platform.sql(
            "UPDATE jobplatform.jobs SET available_at = now() WHERE id IN (SELECT id FROM"
            " jobplatform.jobs WHERE status = 'queued' AND available_at > now() LIMIT 2)"
        )

    # The operator

    def _retry_what_failed(self) -> None:
        rows = self._platform.sql(
            "SELECT id FROM jobplatform.jobs WHERE status IN ('failed', 'cancelled')"
            " AND finished_at < now() - interval '5 s' ORDER BY random() LIMIT 2"
        )
        for (found,) in rows:
            submission = self._ledger.submission_of(str(found))
            if submission is None or submission.purged or submission.retried:
                continue
            submission.retried = True
            submission.cancel_accepted = False
            with contextlib.suppress(client_errors.AdminError):
                self._platform.admin.retry_job(str(found))
                self._ledger.count("retries by an operator")

    def _count_faults(self) -> None:
        log = self._platform.faults_file.with_name(f"{self._platform.faults_file.name}.log")
        if not log.exists():
            return
        for line in log.read_text().splitlines():
            fault = json.loads(line)
            name = {"kill": "kills", "pause": "pauses"}.get(fault["action"], "other faults")
            self._ledger.count(name)
