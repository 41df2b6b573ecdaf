"""Requests that nobody should send: each gets a clear 4xx, and nothing is recorded."""

import base64
import datetime as dt
import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from functions.api import requests
from jobplatform import jobs, problems
from tests.helpers import store
from tests.helpers.api import Answer, Api, count_jobs
from tests.helpers.events import api_request

NOW = dt.datetime.now(dt.UTC)
GOOD = {"template_name": "flights"}
ANY_RUN = hypothesis.settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
    ],
)


def nested(depth: int, around: str = "1") -> str:
    return (
        '{"template_name": "flights", "metadata": {"a": '
        + "[" * depth
        + around
        + "]" * depth
        + "}}"
    )


def with_metadata(text: str) -> str:
    return '{"template_name": "flights", "metadata": {"a": ' + text + "}}"


MALFORMED = {
    "empty": "",
    "blank": " \n",
    "cut off": '{"template_name": "fli',
    "no JSON": "template_name=flights",
    "trailing comma": '{"template_name": "flights",}',
    "single quotes": "{'template_name': 'flights'}",
    "two objects": '{"template_name": "flights"}{}',
    "byte order mark": '\ufeff{"template_name": "flights"}',
    "comment": '{"template_name": "flights"} // please',
    "raw line end in text": '{"template_name": "fli\nghts"}',
    "NaN": with_metadata("NaN"),
    "Infinity": with_metadata("-Infinity"),
    "float out of range": with_metadata("1e400"),
    "integer out of range": with_metadata("1" + "0" * 30),
    "integer of 5,000 digits": with_metadata("1" * 5_000),
    "key twice": '{"template_name": "flights", "template_name": "delays_by_carrier"}',
    "key twice deep inside": with_metadata('{"b": 1, "b": 1}'),
    "nested 50 deep": nested(50),
    "nested 900 deep": nested(900),
    "nested 20,000 deep": nested(20_000),
    "objects nested 5,000 deep": with_metadata('{"a":' * 5_000 + "1" + "}" * 5_000),
    "never closed": "[" * 60_000,
    "NUL in text": with_metadata('"a\\u0000b"'),
    "NUL in a name": with_metadata('{"a\\u0000": 1}'),
    "half a surrogate pair": with_metadata('"\\ud800"'),
    "half a surrogate pair in a name": with_metadata('{"\\udfff": 1}'),
    "the halves the wrong way": with_metadata('"\\udc00\\ud800"'),
    "half a pair in the event itself": with_metadata('"\ud800"'),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=list(MALFORMED))
def test_body_that_is_not_json_as_everybody_reads_it(api: Api, body: str) -> None:
    answer = api.call("POST", "/jobs", body=body, headers={"Idempotency-Key": "k"})

    assert (answer.status, answer.code) == (400, "malformed_request")
    assert answer.json["detail"].startswith("The body ")
    assert count_jobs(api.engine) == 0
    # The key is not spent on it.
    assert api.submit(idempotency_key="k").status == 202


@pytest.mark.parametrize(
    "text", ["é".encode("latin-1"), b'{"template_name": "\xff\xfe"}', b"\xed\xa0\x80", b"\xc0\x80"]
)
def test_body_that_is_not_utf_8(api: Api, text: bytes) -> None:
    answer = api.call("POST", "/jobs", body=base64.b64encode(text).decode(), base64=True)

    assert (answer.status, answer.code) == (400, "malformed_request")


def test_body_that_api_gateway_passes_as_base64_is_read(api: Api) -> None:
    body = json.dumps({**GOOD, "metadata": {"name": "Zoë"}}, ensure_ascii=False).encode()

    answer = api.call("POST", "/jobs", body=base64.b64encode(body).decode(), base64=True)

    assert (answer.status, answer.json["metadata"]) == (202, {"name": "Zoë"})


@pytest.mark.parametrize("body", ["%%%", "a", "e30", "e30=\n", "é"])
def test_base64_that_is_none(api: Api, body: str) -> None:
    assert api.call("POST", "/jobs", body=body, base64=True).status == 400


WRONG: dict[str, tuple[Any, list[Any]]] = {
    "an array": ([GOOD], ["body"]),
    "several in an array": ([GOOD, GOOD], ["body"]),
    "an empty array": ([], ["body"]),
    "a text": ('"flights"', ["body"]),
    "null": ("null", ["body"]),
    "a number": ("1", ["body"]),
    "no template": ({}, ["body", "template_name"]),
    "an unknown field": ({**GOOD, "priority": 1}, ["body", "priority"]),
    "an unknown parameter": ({**GOOD, "parameters": {"nope": 1}}, ["body", "parameters", "nope"]),
    "a wrong parameter": (
        {**GOOD, "parameters": {"carrier": "UAX"}},
        ["body", "parameters", "carrier"],
    ),
    "a parameter of another type": (
        {**GOOD, "parameters": {"origin": ["JFK"]}},
        ["body", "parameters", "origin"],
    ),
    "parameters that are no object": ({**GOOD, "parameters": []}, ["body", "parameters"]),
    "parameters that are null": ({**GOOD, "parameters": None}, ["body", "parameters"]),
    "metadata that is a text": ({**GOOD, "metadata": "x"}, ["body", "metadata"]),
    "an unknown template": ({"template_name": "nope"}, ["body", "template_name"]),
    "a template by path": ({"template_name": "../flights"}, ["body", "template_name"]),
    "a hidden module": ({"template_name": "__init__"}, ["body", "template_name"]),
    "an empty template name": ({"template_name": ""}, ["body", "template_name"]),
    "a very long template name": ({"template_name": "a" * 5_000}, ["body", "template_name"]),
    "a template that is a number": ({"template_name": 1}, ["body", "template_name"]),
    "an unknown format": ({**GOOD, "format": "xlsx"}, ["body", "format"]),
    "a format that is null": ({**GOOD, "format": None}, ["body", "format"]),
    "an unknown compression": ({**GOOD, "compression": "zip"}, ["body", "compression"]),
    "a naive time": ({**GOOD, "run_at": "2099-01-01T00:00:00"}, ["body", "run_at"]),
    "a date": ({**GOOD, "run_at": "2099-01-01"}, ["body", "run_at"]),
    "a Unix time": ({**GOOD, "run_at": 4070908800}, ["body", "run_at"]),
    "a Unix time as text": ({**GOOD, "run_at": "4070908800"}, ["body", "run_at"]),
    "a time that is none": ({**GOOD, "run_at": "2099-02-30T00:00:00Z"}, ["body", "run_at"]),
    "a time that is true": ({**GOOD, "run_at": True}, ["body", "run_at"]),
    "an empty time": ({**GOOD, "run_at": ""}, ["body", "run_at"]),
    "a time in words": ({**GOOD, "run_at": "tomorrow"}, ["body", "run_at"]),
    "a time before all times": (
        {**GOOD, "run_at": "0001-01-01T00:00:00+14:00"},
        ["body", "run_at"],
    ),
    "a time after all times": (
        {**GOOD, "run_at": "9999-12-31T23:59:59-14:00"},
        ["body", "run_at"],
    ),
    "a time in the past": (
        {**GOOD, "run_at": (NOW - dt.timedelta(seconds=90)).isoformat()},
        ["body", "run_at"],
    ),
    "a time in the past, elsewhere": (
        {
            **GOOD,
            "run_at": (NOW - dt.timedelta(hours=1))
            .astimezone(dt.timezone(dt.timedelta(hours=14)))
            .isoformat(),
        },
        ["body", "run_at"],
    ),
    "a time too far ahead": (
        {**GOOD, "run_at": (NOW + dt.timedelta(days=366)).isoformat()},
        ["body", "run_at"],
    ),
    "metadata over its size": ({**GOOD, "metadata": {"a": "x" * 4_096}}, ["body", "metadata"]),
    "parameters over their size": (
        {**GOOD, "parameters": {"carrier": "x" * 16_384}},
        ["body", "parameters"],
    ),
}


@pytest.mark.parametrize(("body", "where"), WRONG.values(), ids=list(WRONG))
def test_values_that_are_not_allowed(api: Api, body: Any, where: list[Any]) -> None:
    answer = api.call("POST", "/jobs", body=body, headers={"Idempotency-Key": "k"})

    assert (answer.status, answer.code) == (422, "invalid_request")
    assert where in [error["loc"][: len(where)] for error in answer.json["errors"]]
    assert count_jobs(api.engine) == 0
    assert api.submit(idempotency_key="k").status == 202


def test_every_wrong_value_is_named_at_once(api: Api) -> None:
    answer = api.submit(format="xlsx", run_at="2030-01-01T00:00:00", more=1)

    wheres = {error["loc"][-1] for error in answer.json["errors"]}
    assert wheres == {"format", "run_at", "more"}


def test_thousands_of_errors_are_told_in_a_small_answer(api: Api) -> None:
    many = {f"unknown-{number:05}": 1 for number in range(2_000)}

    answer = api.submit(**many)

    assert answer.status == 422
    assert len(answer.json["errors"]) == problems.MAX_ERRORS
    assert "2000" in answer.json["detail"]


def test_long_names_are_told_in_a_small_answer(api: Api) -> None:
    answer = api.call("POST", "/jobs", body='{"%s": 1}' % ("é" * 30_000))

    assert answer.status == 422
    assert len(answer.text) < 3_000


@pytest.mark.parametrize("size", [0, 1])
def test_size_of_a_body(api: Api, size: int) -> None:
    body = json.dumps(GOOD).ljust(requests.MAX_BODY_BYTES + size)

    answer = api.call("POST", "/jobs", body=body)

    assert answer.status == (413 if size else 202)
    assert answer.status == 202 or answer.code == "payload_too_large"


@pytest.mark.parametrize("junk", ["x" * 70_000, "é" * 40_000, "[" * 200_000])
def test_body_too_large_is_not_even_read(api: Api, junk: str) -> None:
    assert api.call("POST", "/jobs", body=junk).status == 413
    coded = base64.b64encode(junk.encode()).decode()
    assert api.call("POST", "/jobs", body=coded, base64=True).status == 413
    assert count_jobs(api.engine) == 0


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/jsonl",
        "application/json-patch+json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin-1",
        "application/json, application/json",
        ["application/json", "text/plain"],
    ],
)
def test_other_content_types(api: Api, content_type: Any) -> None:
    answer = api.call("POST", "/jobs", body=GOOD, headers={"Content-Type": content_type})

    assert (answer.status, answer.code) == (415, "unsupported_media_type")
    assert count_jobs(api.engine) == 0


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json;charset=UTF-8",
        'application/json; charset="utf-8"',
        " application/json ",
    ],
)
def test_spellings_of_json(api: Api, content_type: str) -> None:
    headers = {"Content-Type": None, "CONTENT-type": content_type}

    assert api.call("POST", "/jobs", body=GOOD, headers=headers).status == 202


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        "   ",
        "a" * 256,
        "a\nb",
        "a\tb",
        "a\x7f",
        "é",
        "a\0b",
        "\ud800",
        ["a", "b"],
        ["a", "a"],
    ],
)
def test_idempotency_keys_that_are_none(api: Api, key: Any) -> None:
    answer = api.submit(idempotency_key=key)

    assert (answer.status, answer.code) == (400, "invalid_idempotency_key")
    assert count_jobs(api.engine) == 0


@pytest.mark.parametrize("key", ["a", "a" * 255, "a b", "a,b", "~!{}", '"quoted"', "%00"])
def test_idempotency_keys_of_every_printable_kind(api: Api, key: str) -> None:
    first, second = api.submit(idempotency_key=key), api.submit(idempotency_key=key)

    assert first.json["id"] == second.json["id"]
    assert count_jobs(api.engine) == 1


@pytest.mark.parametrize("key", [None, "", "nope", "é", "\ud800", "a\0", "x" * 10_000])
def test_api_keys_that_nobody_has(api: Api, key: str | None) -> None:
    for method, path in (("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/templates")):
        answer = api.call(method, path, body=GOOD, key=key)

        assert (answer.status, answer.code) == (403, "forbidden")
    assert count_jobs(api.engine) == 0


def test_two_api_keys_in_one_request(api: Api) -> None:
    """API Gateway charges one of them, so neither may speak for the other."""
    answer = api.call("GET", "/jobs", headers={"x-api-key": [api.key, api.new_client("other")]})

    assert answer.status == 403


LIST_QUERIES: dict[str, dict[str, Any]] = {
    "limit 0": {"limit": "0"},
    "limit 201": {"limit": "201"},
    "limit -1": {"limit": "-1"},
    "limit in words": {"limit": "abc"},
    "limit 1.5": {"limit": "1.5"},
    "limit of 5,000 digits": {"limit": "9" * 5_000},
    "empty limit": {"limit": ""},
    "limit twice": {"limit": ["1", "2"]},
    "limit NaN": {"limit": "NaN"},
    "unknown status": {"status": "done"},
    "status twice": {"status": ["queued", "running"]},
    "status in capitals": {"status": "QUEUED"},
    "naive time": {"created_after": "2026-01-01T00:00:00"},
    "offset that became a space": {"created_after": "2026-01-01T00:00:00 01:00"},
    "Unix time": {"created_before": "1767225600"},
    "time before all times": {"created_after": "0001-01-01T00:00:00+14:00"},
    "time after all times": {"created_before": "9999-12-31T23:59:59-14:00"},
    "time with a letter": {"created_after": "2026-01-01T00:00:00Q"},
    "long template name": {"template_name": "a" * 101},
    "NUL": {"template_name": "a\0"},
    "half a surrogate pair": {"template_name": "\ud800"},
    "NUL in a cursor": {"cursor": "\0"},
    "unknown parameter": {"offset": "10"},
    "parameter of another case": {"Limit": "10"},
    "long cursor": {"cursor": "a" * 1_001},
}


@pytest.mark.parametrize("query", LIST_QUERIES.values(), ids=list(LIST_QUERIES))
def test_queries_of_a_list_that_are_wrong(api: Api, query: dict[str, Any]) -> None:
    answer = api.call("GET", "/jobs", query=query)

    assert (answer.status, answer.code) == (422, "invalid_request")
    assert [error["loc"] for error in answer.json["errors"]] == [["query", *query]]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("", {"wait": "21"}),
        ("", {"wait": "-1"}),
        ("", {"wait": "1.5"}),
        ("", {"wait": "soon"}),
        ("", {"nope": "1"}),
        ("/download", {"redirect": "perhaps"}),
        ("/download", {"redirect": "\0"}),
        ("/download", {"expires": "1"}),
    ],
)
def test_queries_of_a_job_that_are_wrong(api: Api, path: str, query: dict[str, Any]) -> None:
    job_id = api.submit().json["id"]

    answer = api.call("GET", f"/jobs/{job_id}{path}", query=query)

    assert (answer.status, answer.code) == (422, "invalid_request")


@pytest.mark.parametrize(
    "spelling",
    [
        "{{{}}}",
        "urn:uuid:{}",
        "{}0",
        "x",
        "0",
        "null",
        "{} ",
        "%20{}",
        "-1",
        "..",
        "1; DROP TABLE jobs",
        "\u0660" * 32,
        "\ud800",
        "a" * 8_000,
    ],
)
def test_ids_that_are_none(api: Api, spelling: str) -> None:
    job_id = spelling.replace("{}", api.submit().json["id"]).replace("{{", "{").replace("}}", "}")

    for method, end in (("GET", ""), ("GET", "/download"), ("POST", "/cancel")):
        answer = api.call(method, f"/jobs/{job_id}{end}")

        assert answer.status == 404
        assert answer.code in ("job_not_found", "not_found")


def test_id_without_its_dashes_is_another_address(api: Api) -> None:
    job_id = api.submit().json["id"]

    assert api.call("GET", f"/jobs/{job_id.replace('-', '')}").status == 404
    assert api.call("GET", f"/jobs/{job_id.upper()}").status == 200


texts = st.text(st.characters(codec=None), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**15, max_value=10**40)
    | st.floats()
    | texts
    | st.datetimes().map(str)
    | st.datetimes(timezones=st.just(dt.UTC)).map(lambda moment: moment.isoformat()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "template_name": st.sampled_from(["flights", "aircraft_rotations", "nope"]) | values,
        "parameters": st.dictionaries(
            st.sampled_from(["carrier", "origin", "date_from", "min_days", "x"]), values, max_size=3
        )
        | values,
        "run_at": values,
        "metadata": st.dictionaries(texts, values, max_size=3) | values,
        "format": st.sampled_from(list(jobs.ResultFormat)) | values,
        "compression": values,
        "more": values,
    },
)


def outcome(api: Api, answer: Answer) -> None:
    """202 and one more job, or 4xx and none; `send` has checked the shape."""
    assert answer.status in (202, 400, 413, 415, 422), answer
    assert count_jobs(api.engine) == (answer.status == 202)
    if answer.status == 202:
        shown = api.call("GET", f"/jobs/{answer.json['id']}")
        assert shown.json == answer.json
        with api.engine.begin() as conn:
            conn.exec_driver_sql("DELETE FROM jobplatform.jobs")


@ANY_RUN
@hypothesis.given(body=bodies)
def test_whatever_object_is_sent_is_accepted_or_refused(api: Api, body: dict[str, Any]) -> None:
    outcome(api, api.call("POST", "/jobs", body=json.dumps(body)))


@ANY_RUN
@hypothesis.given(
    body=st.text(max_size=200)
    | st.binary(max_size=100).map(lambda raw: raw.decode("latin-1"))
    | values.map(json.dumps),
    coded=st.booleans(),
    content_type=st.sampled_from(["application/json", "text/plain", "multipart/form-data"]),
)
def test_whatever_text_is_sent_is_refused(
    api: Api, body: str, coded: bool, content_type: str
) -> None:
    headers = {"Content-Type": content_type}

    outcome(api, api.call("POST", "/jobs", body=body, headers=headers, base64=coded))


@ANY_RUN
@hypothesis.given(
    metadata=st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_metadata_of_every_kind_comes_back_as_it_was_sent(
    api: Api, metadata: dict[str, Any]
) -> None:
    answer = api.submit(metadata=metadata)

    if "\0" in json.dumps(metadata, ensure_ascii=False).replace("\\u0000", "\0"):
        assert answer.status == 400
    else:
        assert answer.json["metadata"] == metadata


@ANY_RUN
@hypothesis.given(data=st.data())
def test_whatever_is_asked_is_answered_below_500(api: Api, data: st.DataObject) -> None:
    """Any method, path, query, headers and body, and any stage in the event."""
    segments = (
        st.sampled_from(
            [
                "jobs",
                "templates",
                "flights",
                "download",
                "cancel",
                "health",
                "docs",
                "openapi.json",
                "errors",
                str(jobs.new_id()),
            ]
        )
        | texts
    )
    several = texts | st.lists(texts, min_size=1, max_size=3)
    names = st.sampled_from(
        ["limit", "cursor", "status", "wait", "redirect", "created_after", "template_name"]
    )
    event = api_request(
        data.draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "get", "X"])),
        "/" + "/".join(data.draw(st.lists(segments, max_size=4))),
        body=data.draw(st.none() | texts | st.just(json.dumps(GOOD))),
        headers=data.draw(
            st.dictionaries(
                st.sampled_from(["Idempotency-Key", "Content-Type", "Accept-Encoding", "X-A"]),
                several,
                max_size=3,
            )
        ),
        query=data.draw(st.dictionaries(names | texts, several, max_size=3)),
        key=data.draw(st.just(api.key) | texts),
        base64=data.draw(st.booleans()),
    )
    if data.draw(st.booleans()):
        event["headers"] = event["multiValueHeaders"] = None

    assert api.send(event).status < 500


def test_nothing_that_was_refused_left_a_trace(api: Api) -> None:
    for body in (*MALFORMED.values(), *(body for body, _ in WRONG.values())):
        api.call("POST", "/jobs", body=body)

    for table in ("jobs", "attempts", "transitions"):
        assert store.count(api.engine, table) == 0
