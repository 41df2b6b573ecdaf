"""Lists are pages that fit together, whatever is added meanwhile."""

import base64
import datetime as dt
import random
import uuid
from typing import Any

import pytest

from functions.api import resources
from tests.helpers import lambdas, store
from tests.helpers.api import MOST_BYTES, Api


def walk(api: Api, between: Any = lambda: None, **query: Any) -> list[list[str]]:
    """The ids of every page; `between` is called after each."""
    pages: list[list[str]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = api.call("GET", "/jobs", query={**query, **cursor})
        assert answer.status == 200
        pages.append([item["id"] for item in answer.json["items"]])
        if answer.json["next_cursor"] is None:
            return pages
        cursor = {"cursor": answer.json["next_cursor"]}
        between()


def flat(pages: list[list[str]]) -> list[str]:
    return [job_id for page in pages for job_id in page]


def test_nothing_is_an_empty_page(api: Api) -> None:
    assert api.call("GET", "/jobs").json == {"items": [], "next_cursor": None}


def test_newest_first(api: Api) -> None:
    ids = [api.submit().json["id"] for _ in range(5)]

    assert walk(api) == [ids[::-1]]


@pytest.mark.parametrize(
    ("count", "limit", "sizes"), [(4, 2, [2, 2]), (5, 2, [2, 2, 1]), (2, 2, [2])]
)
def test_last_page_has_no_cursor(api: Api, count: int, limit: int, sizes: list[int]) -> None:
    store.add_many(api.engine, api.client_id, count)

    assert [len(page) for page in walk(api, limit=str(limit))] == sizes


def test_pages_are_of_50_unless_said_otherwise(api: Api) -> None:
    store.add_many(api.engine, api.client_id, 51)

    assert [len(page) for page in walk(api)] == [50, 1]


@pytest.mark.parametrize("limit", [1, 7, 100, 200])
def test_jobs_of_one_instant_are_each_listed_once(api: Api, limit: int) -> None:
    """The order among them is that of their ids, so that a page can end in their middle."""
    count = 40 if limit == 1 else 550
    store.add_many(api.engine, api.client_id, count)

    ids = flat(walk(api, limit=str(limit)))

    assert len(ids) == len(set(ids)) == count
    assert ids == sorted(ids, reverse=True)


def test_pages_neither_repeat_nor_skip_while_jobs_are_added_ended_and_deleted(api: Api) -> None:
    store.add_many(api.engine, api.client_id, 100)
    first = {str(row) for row in all_ids(api)}
    chance = random.Random(7)
    deleted: set[str] = set()

    def meanwhile() -> None:
        api.submit()
        store.cancel(api.engine, uuid.UUID(chance.choice(sorted(first - deleted))))
        gone = chance.choice(sorted(first - deleted))
        deleted.add(gone)
        with api.engine.begin() as conn:
            conn.exec_driver_sql(f"DELETE FROM jobplatform.jobs WHERE id = '{gone}'")

    ids = flat(walk(api, meanwhile, limit="9"))

    assert len(ids) == len(set(ids))
    assert first - deleted <= set(ids) <= first


def test_cursor_works_after_the_job_it_names_was_purged(api: Api) -> None:
    ids = [api.submit().json["id"] for _ in range(4)][::-1]
    page = api.call("GET", "/jobs", query={"limit": "2"}).json
    with api.engine.begin() as conn:
        conn.exec_driver_sql(f"DELETE FROM jobplatform.jobs WHERE id = '{ids[1]}'")

    rest = api.call("GET", "/jobs", query={"cursor": page["next_cursor"]}).json

    assert [item["id"] for item in rest["items"]] == ids[2:]


def test_filters(api: Api) -> None:
    flights = [api.submit().json for _ in range(3)]
    delays = api.submit("delays_by_carrier").json
    store.cancel(api.engine, uuid.UUID(flights[0]["id"]))
    moment = flights[1]["created_at"]

    def ids(**query: str) -> list[str]:
        return flat(walk(api, limit="1", **query))

    assert ids(status="cancelled") == [flights[0]["id"]]
    assert ids(template_name="delays_by_carrier") == [delays["id"]]
    assert ids(template_name="nope") == []
    assert ids(status="queued", template_name="flights") == [flights[2]["id"], flights[1]["id"]]
    assert ids(created_after=moment) == [delays["id"], flights[2]["id"]]
    assert ids(created_before=moment) == [flights[0]["id"]]
    assert ids(created_after=flights[0]["created_at"], created_before=delays["created_at"]) == [
        flights[2]["id"],
        flights[1]["id"],
    ]
    assert ids(created_after="2099-01-01T00:00:00+05:30") == []


def test_cursor_is_good_for_its_own_filters_only(api: Api) -> None:
    store.add_many(api.engine, api.client_id, 3)
    cursor = api.call("GET", "/jobs", query={"limit": "1", "status": "queued"}).json["next_cursor"]

    for other in ({}, {"status": "running"}, {"status": "queued", "template_name": "flights"}):
        answer = api.call("GET", "/jobs", query={**other, "cursor": cursor})

        assert (answer.status, answer.code) == (400, "invalid_cursor")
    # The limit may change on the way.
    query = {"status": "queued", "limit": "2", "cursor": cursor}
    assert len(api.call("GET", "/jobs", query=query).json["items"]) == 2


def test_cursor_of_another_client_is_none(api: Api) -> None:
    store.add_many(api.engine, api.client_id, 3)
    cursor = api.call("GET", "/jobs", query={"limit": "1"}).json["next_cursor"]

    answer = api.call("GET", "/jobs", query={"cursor": cursor}, key=api.new_client("other"))

    assert (answer.status, answer.code) == (400, "invalid_cursor")


def test_cursor_that_was_changed_anywhere_is_none(api: Api) -> None:
    store.add_many(api.engine, api.client_id, 2)
    cursor = api.call("GET", "/jobs", query={"limit": "1"}).json["next_cursor"]
    raw = base64.urlsafe_b64decode(cursor)

    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1
        text = base64.urlsafe_b64encode(bytes(changed)).decode()
        answer = api.call("GET", "/jobs", query={"cursor": text})

        assert (answer.status, answer.code) == (400, "invalid_cursor"), position


@pytest.mark.parametrize(
    "cursor", ["", "x", "zz", "====", "AAAA", "é", "eyJhIjoxfQ==", "A" * 1_000, " ", "' OR 1=1 --"]
)
def test_cursor_that_never_was_one(api: Api, cursor: str) -> None:
    answer = api.call("GET", "/jobs", query={"cursor": cursor})

    assert (answer.status, answer.code) == (400, "invalid_cursor")


def test_cursor_signed_with_another_secret_is_none(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_many(api.engine, api.client_id, 2)
    cursor = api.call("GET", "/jobs", query={"limit": "1"}).json["next_cursor"]
    monkeypatch.setenv("API_CURSOR_SECRET", "another")
    resources.cursor_secret.cache_clear()
    lambdas.start_anew()

    assert api.call("GET", "/jobs", query={"cursor": cursor}).code == "invalid_cursor"


def test_secret_of_cursors_comes_from_secrets_manager_where_it_is_there(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SecretsManager:
        def get_secret_value(self, *, SecretId: str) -> dict[str, str]:
            return {"SecretString": f"secret of {SecretId}"}

    monkeypatch.setenv("API_CURSOR_SECRET_ARN", "arn:of:it")
    monkeypatch.setattr("jobplatform.aws.client", lambda service, *rest: SecretsManager())
    resources.cursor_secret.cache_clear()
    resources.get.cache_clear()

    assert resources.cursor_secret() == b"secret of arn:of:it"


def test_api_without_a_secret_for_cursors_says_which_setting_is_missing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("API_CURSOR_SECRET")
    lambdas.start_anew()

    with pytest.raises(ValueError, match="API_CURSOR_SECRET"):
        resources.cursor_secret()
    assert api.call("GET", "/jobs").status == 500


def test_cursor_says_nothing_that_its_client_does_not_know(api: Api) -> None:
    store.add_many(api.engine, api.client_id, 2)
    cursor = api.call("GET", "/jobs", query={"limit": "1"}).json["next_cursor"]

    assert str(api.client_id).encode() not in base64.urlsafe_b64decode(cursor)


def test_full_page_of_ordinary_jobs_is_not_cut(api: Api) -> None:
    store.add_many(api.engine, api.client_id, 201)

    assert [len(page) for page in walk(api, limit="200")] == [200, 1]


def test_pages_of_large_jobs_are_shorter_and_still_fit_together(api: Api) -> None:
    """An answer stays small, whatever clients put into their jobs."""
    large = {"text": "x" * 4_000}
    with api.engine.begin() as conn:
        store.add_many(api.engine, api.client_id, 120)
        conn.exec_driver_sql(
            "UPDATE jobplatform.jobs SET metadata = jsonb_build_object('text', repeat('é', 660)),"
            " parameters = jsonb_build_object('text', repeat('x', 16000))"
        )
    api.submit(metadata=large)

    pages = walk(api, limit="200")  # `send` measures every answer

    assert len(pages) > 8
    assert len(flat(pages)) == len(set(flat(pages))) == 121
    assert len(pages[0]) * 16_000 > MOST_BYTES / 2, "pages are filled"


def all_ids(api: Api) -> list[uuid.UUID]:
    with api.engine.begin() as conn:
        return list(conn.exec_driver_sql("SELECT id FROM jobplatform.jobs").scalars())


def test_times_of_filters_are_exact_to_the_microsecond(api: Api) -> None:
    job = api.submit().json
    created = dt.datetime.fromisoformat(job["created_at"])
    tick = dt.timedelta(microseconds=1)

    def listed(**query: dt.datetime) -> int:
        text = {name: moment.isoformat() for name, moment in query.items()}
        return len(api.call("GET", "/jobs", query=text).json["items"])

    assert listed(created_after=created - tick) == 1
    assert listed(created_after=created) == 0
    assert listed(created_before=created + tick) == 1
    assert listed(created_before=created) == 0
