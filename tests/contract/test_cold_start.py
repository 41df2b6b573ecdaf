"""The budget of a cold start: modules that a function may not import before its first line.

A list rather than a time, so that it says what came in and holds on any machine. What is imported
later, when a request needs it, is not counted here. Measured by `make bench BENCH=cold_start`.
"""

import functools

import pytest

from tests.benchmarks.cold_start import FUNCTIONS, Cold

# Of packages that are there, but for other purposes than those of any function's start.
NOBODY = {
    "aws_lambda_powertools.utilities.feature_flags",
    "aws_lambda_powertools.utilities.parameters",
    "aws_lambda_powertools.utilities.parser",
    "aws_xray_sdk",
    "boto3.dynamodb.table",
    "email_validator",
    "isal",
    "numpy",
    "pandas",
    "pkg_resources",
    "pydantic.v1",
    "setuptools",
    "sqlalchemy.dialects.mssql",
    "sqlalchemy.dialects.mysql",
    "sqlalchemy.dialects.oracle",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.orm",
    "sqlite3",
    "templates.flights",
    "unittest",
}
# Making a client costs as much as all other imports of a small function together.
ONLY_API = {
    "aws_lambda_powertools.event_handler",
    "aws_lambda_powertools.utilities.idempotency",
    "boto3",
    "botocore.client",
}
ONLY_WORKER = {"aws_lambda_powertools.utilities.batch", "jobplatform.export"}
ONLY_MIGRATE = {"alembic", "mako", "jobplatform.migrations", "sqlalchemy.ext"}

MAY_NOT = {
    "api": NOBODY | ONLY_WORKER | ONLY_MIGRATE,
    "worker": NOBODY | ONLY_API | ONLY_MIGRATE,
    "dispatcher": NOBODY | ONLY_API | ONLY_WORKER | ONLY_MIGRATE,
    "purge": NOBODY | ONLY_API | ONLY_WORKER | ONLY_MIGRATE,
    "migrate": NOBODY | ONLY_API | ONLY_WORKER,
    "admin": NOBODY | ONLY_API | ONLY_WORKER | ONLY_MIGRATE,
}


@pytest.fixture(scope="module")
def cold() -> Cold:
    return Cold()


def test_every_function_has_a_budget() -> None:
    assert set(MAY_NOT) == set(FUNCTIONS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_imports_nothing_that_it_can_do_without(cold: Cold, function: str) -> None:
    imported = set(_imported(cold, function))

    assert f"functions.{function}.handler" in imported
    assert sorted(imported & MAY_NOT[function]) == []


@pytest.mark.timeout(300)
def test_the_budget_names_modules_that_exist(cold: Cold) -> None:
    """A name that nothing can import any more would hold for ever."""
    known = {module for function in FUNCTIONS for module in _imported(cold, function)}

    assert sorted((ONLY_API | ONLY_WORKER | ONLY_MIGRATE) - known) == []


@functools.cache
def _imported(cold: Cold, function: str) -> tuple[str, ...]:
    return cold.start(function).modules
