"""Errors on their way to a caller: each has a status, a code of its own and words."""

import gc
from http import HTTPStatus
from typing import Any

import pytest

from functions.api import handler
from infra.constructs import rest_api
from jobplatform import errors, problems
from tests.helpers.events import load_event


def subclasses(kind: type[Any]) -> set[type[Any]]:
    return {kind} | {each for child in kind.__subclasses__() for each in subclasses(child)}


REQUEST_ERRORS = sorted(subclasses(errors.RequestError), key=lambda kind: kind.__name__)
ALL_ERRORS = sorted(subclasses(errors.PlatformError), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", REQUEST_ERRORS)
def test_every_request_error_has_a_status_of_its_own(kind: type[errors.RequestError]) -> None:
    assert kind in problems.STATUS
    assert 400 <= problems.STATUS[kind] < 600


def test_no_status_is_kept_for_an_error_that_is_gone() -> None:
    assert set(problems.STATUS) == set(REQUEST_ERRORS)


def test_codes_tell_errors_apart() -> None:
    codes = [kind.code for kind in ALL_ERRORS]

    assert len(set(codes)) == len(codes)
    assert not {kind.code for kind in REQUEST_ERRORS} & set(problems.GATEWAY)


def test_codes_of_the_door_are_those_that_it_answers() -> None:
    """What both may say is said by the function's error, the rest is listed in `GATEWAY`."""
    of_the_door = {answer.code for answer in rest_api.ANSWERS.values()}

    assert of_the_door <= set(problems.codes())
    assert set(problems.GATEWAY) <= of_the_door


@pytest.mark.parametrize("kind", ALL_ERRORS)
def test_every_error_has_words_and_a_stable_code(kind: type[errors.PlatformError]) -> None:
    error = kind()

    assert error.message.endswith(".")
    assert kind.code == kind.code.lower()
    assert "code" in vars(kind), "a code of its own, not that of its base"


@pytest.mark.parametrize("kind", REQUEST_ERRORS)
def test_every_request_error_is_answered_as_a_problem(kind: type[errors.RequestError]) -> None:
    event = load_event("api_get_job")

    answer = problems.answer(kind(), event)

    body = problems.json.loads(answer["body"])
    assert answer["statusCode"] == problems.STATUS[kind]
    assert answer["multiValueHeaders"]["Content-Type"] == [problems.CONTENT_TYPE]
    assert ("Retry-After" in answer["multiValueHeaders"]) == (kind.retry_after is not None)
    assert body == {
        "type": f"/docs/errors#{kind.code}",
        "title": HTTPStatus(answer["statusCode"]).phrase,
        "status": answer["statusCode"],
        "detail": kind().message,
        "code": kind.code,
        "instance": event["requestContext"]["requestId"],
    }


def test_error_that_is_added_later_is_answered_by_its_base() -> None:
    class Newer(errors.ResultExpired):
        """Newer."""

    try:
        answer = problems.answer(Newer(), load_event("api_get_job"))
        assert answer["statusCode"] == 410
    finally:
        # Other tests ask for all subclasses.
        del Newer
        gc.collect()


def test_times_to_wait_are_rounded_up_to_whole_seconds() -> None:
    error = errors.ResultNotReady(retry_after=errors.timedelta(milliseconds=1_200))

    answer = problems.answer(error, load_event("api_get_job"))

    assert answer["multiValueHeaders"]["Retry-After"] == ["2"]


def test_handlers_of_the_app_cover_whatever_is_raised() -> None:
    lookup = handler.app.exception_handler_manager.lookup_exception_handler

    for kind in (*REQUEST_ERRORS, errors.PermanentFailure, RecursionError, KeyError, MemoryError):
        assert lookup(kind) is not None, kind
