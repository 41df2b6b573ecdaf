"""Whose job is next: no client waits for another's thousand, and nobody's worker stands idle."""

import collections
import datetime as dt
import uuid

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobplatform import jobs
from tests.conftest import new_client
from tests.helpers import store


class Workers:
    """So many workers: each that is free claims what is next, in the order of their number."""

    def __init__(self, engine: sa.Engine, count: int) -> None:
        self.engine = engine
        self.count = count
        self.running: list[jobs.Job] = []
        self.started: list[uuid.UUID] = []
        """The client of each job, in the order in which they started."""

    def work(self) -> None:
        while len(self.running) < self.count and (job := store.claim(self.engine)) is not None:
            self.running.append(job)
            self.started.append(job.client_id)

    def complete(self, index: int = 0) -> None:
        job = self.running.pop(index % len(self.running))
        assert store.end(self.engine, job)

    def of(self, client_id: uuid.UUID) -> int:
        return sum(job.client_id == client_id for job in self.running)


@pytest.mark.parametrize("count", [1, 2, 5, 10])
@pytest.mark.parametrize("served_before", [False, True])
def test_another_clients_first_job_starts_within_workers_and_one_completions(
    engine: sa.Engine, count: int, served_before: bool
) -> None:
    big, small = new_client(engine, "big"), new_client(engine, "small")
    workers = Workers(engine, count)
    if served_before:
        store.add(engine, small, plan="basic")
        workers.work()
        workers.complete()
    store.add_many(engine, big, 1_000, plan="pro")
    workers.work()
    assert workers.of(big) == count
    store.add(engine, small, plan="basic")

    completions = 0
    while not workers.of(small):
        workers.complete()
        completions += 1
        workers.work()

    assert completions <= count + 1


def test_a_client_alone_uses_every_worker(engine: sa.Engine, client_id: uuid.UUID) -> None:
    new_client(engine, "idle")
    later = new_client(engine, "later")
    store.add(engine, later, run_at=dt.datetime.now(dt.UTC) + store.DAY)
    store.add_many(engine, client_id, 50, plan="basic")
    workers = Workers(engine, 10)

    workers.work()

    assert workers.of(client_id) == 10


def test_workers_are_shared_by_the_weights_of_the_plans(engine: sa.Engine) -> None:
    pro, basic = new_client(engine, "pro"), new_client(engine, "basic")
    store.add_many(engine, pro, 200, plan="pro")
    store.add_many(engine, basic, 200, plan="basic")
    workers = Workers(engine, 10)
    workers.work()

    shares = set()
    for step in range(100):
        workers.complete(step * 7)
        workers.work()
        if step >= 20:
            shares.add((workers.of(pro), workers.of(basic)))

    # The weights are 4 and 1.
    assert shares <= {(7, 3), (8, 2), (9, 1)}
    assert (8, 2) in shares


def test_clients_of_equal_right_take_turns(engine: sa.Engine) -> None:
    clients = [new_client(engine, name) for name in ("a", "b", "c")]
    for client_id in clients:
        store.add_many(engine, client_id, 10)
    workers = Workers(engine, 1)
    for _ in range(12):
        workers.work()
        workers.complete()

    rounds = [workers.started[start : start + 3] for start in range(0, 12, 3)]
    assert all(sorted(each) == sorted(clients) for each in rounds)
    assert all(each == rounds[0] for each in rounds)


def test_a_job_that_waits_for_its_retry_does_not_hold_up_its_clients_others(
    engine: sa.Engine, client_id: uuid.UUID
) -> None:
    first, second = store.add(engine, client_id), store.add(engine, client_id)
    job = store.claim(engine)
    assert job is not None
    assert job.id == first
    store.requeue(engine, job, after=dt.timedelta(minutes=2))

    job = store.claim(engine)

    assert job is not None
    assert job.id == second


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 3), st.integers(1, 4)),
        st.tuples(st.just("complete"), st.integers(0, 9), st.just(0)),
    ),
    min_size=1,
    max_size=25,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(workers_count=st.integers(1, 4), events=EVENTS)
def test_of_any_arrivals_the_smallest_share_is_always_next(
    engine: sa.Engine, workers_count: int, events: list[tuple[str, int, int]]
) -> None:
    """A model that counts, beside the database that decides."""
    with engine.begin() as conn:
        conn.execute(sa.text("TRUNCATE jobplatform.clients CASCADE"))
    clients = [new_client(engine, str(number)) for number in range(4)]
    plans = ["basic", "pro", "basic", "pro"]
    queued: collections.Counter[uuid.UUID] = collections.Counter()
    served: dict[uuid.UUID, int] = {}
    waits: dict[uuid.UUID, int] = {}
    workers = Workers(engine, workers_count)

    for kind, number, count in events:
        if kind == "submit":
            client_id = clients[number]
            if not queued[client_id] and not workers.of(client_id):
                waits[client_id] = 0
            store.add_many(engine, client_id, count, plan=plans[number])
            queued[client_id] += count
        elif workers.running:
            workers.complete(number)
            waits = {client_id: done + 1 for client_id, done in waits.items()}
        while len(workers.running) < workers_count and queued.total():
            share = {
                client_id: (
                    workers.of(client_id) / store.WEIGHTS[plans[clients.index(client_id)]],
                    served.get(client_id, -1),
                )
                for client_id in clients
                if queued[client_id]
            }
            job = store.claim(engine)
            assert job is not None, "a worker stands idle while jobs wait"
            assert share[job.client_id] == min(share.values())
            workers.running.append(job)
            queued[job.client_id] -= 1
            served[job.client_id] = len(workers.started)
            workers.started.append(job.client_id)
            waited = waits.pop(job.client_id, 0)
            # Each other client may have come before, with no more than one job each.
            assert waited <= workers_count + len(clients) - 1
