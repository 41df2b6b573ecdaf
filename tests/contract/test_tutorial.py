"""The templates of the documentation work as it says, word for word."""

import json
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import templates
from jobplatform import jobs, settings, sqltext, templating
from jobplatform.usecases import run_job
from tests.helpers import pages, platform, template_contract

TUTORIAL = pages.page("docs/tutorial.md")
HOWTO = pages.page("docs/howto/add-a-template.md")
NAME = "busiest_routes"

Install = Callable[[str, str], templating.Template]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a file into the package `templates`, before one that a reader may have written there."""
    monkeypatch.setattr(templates, "__path__", [str(tmp_path), *templates.__path__])
    made: list[str] = []

    def into_the_package(name: str, text: str) -> templating.Template:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        made.append(name)
        _forget(name)
        return templating.get(name)

    yield into_the_package
    _forget(*made)


def _forget(*names: str) -> None:
    for name in names:
        sys.modules.pop(f"templates.{name}", None)
    templating._load.cache_clear()
    templating.catalogue.cache_clear()


@pytest.fixture
def tutorial(install: Install) -> templating.Template:
    """The template of the tutorial."""
    assert f"`layers/templates/python/templates/{NAME}.py`" in TUTORIAL.prose
    return install(NAME, TUTORIAL.blocks("python")[0].text)


def test_the_tutorials_template_appears_in_the_catalogue_as_shown(
    tutorial: templating.Template,
) -> None:
    shown = TUTORIAL.section("3. Find it in the catalogue")
    properties = tutorial.schema()["properties"]

    assert NAME in templating.catalogue()
    assert re.search(rf"^title +{re.escape(tutorial.title)}$", shown, re.MULTILINE)
    assert tutorial.description.removeprefix(tutorial.title).strip() in shown
    for name, schema in properties.items():
        assert re.search(rf"^{name} +.*{re.escape(schema['description'])}$", shown, re.MULTILINE), (
            name
        )
    columns = dict(re.findall(r"^(\w+) +(\w+)$", shown.split("\nColumns\n")[1], re.MULTILINE)[1:])
    assert {column.name: column.type for column in tutorial.result_columns()} == columns


def test_the_tutorials_template_keeps_the_rules_of_a_template(
    tutorial: templating.Template, data: settings.DataDatabaseSettings
) -> None:
    assert template_contract.check(tutorial, data) == 224


def test_the_tutorials_request_gives_the_tutorials_rows(
    tutorial: templating.Template, worker: run_job.Worker, client_id: uuid.UUID
) -> None:
    sent = re.search(r"-d '(\{.*\})'", TUTORIAL.section("4. Ask for it"))
    assert sent
    body = json.loads(sent[1])

    job = platform.submit(worker, client_id, body["template_name"], body["parameters"])
    done = platform.run(worker, job)

    assert done.status is jobs.JobStatus.SUCCEEDED
    assert done.result is not None
    file = platform.read(worker.bucket, done).decode()
    printed = TUTORIAL.section("5. Download the CSV").split("head -4 routes.csv\n")[1]
    assert file.splitlines()[:4] == printed.splitlines()[:4]
    facts = f'"rows":{done.result.rows},"bytes":{done.result.bytes},'
    facts += f'"sha256":"{done.result.sha256[:8]}…"'
    assert facts in TUTORIAL.section("4. Ask for it")


def test_the_tutorials_mistake_is_refused_with_the_tutorials_words(
    tutorial: templating.Template,
) -> None:
    section = TUTORIAL.section("6. See what a mistake looks like")
    (problem,) = (json.loads(block.text) for block in TUTORIAL.blocks("json"))

    with pytest.raises(ValueError, match="validation error") as refused:
        tutorial.parse({"origin": "LHR"})

    (detail,) = refused.value.errors()  # type: ignore[attr-defined]
    (shown,) = problem["errors"]
    assert shown["loc"] == ["body", "parameters", *detail["loc"]]
    assert (shown["msg"], shown["type"]) == (detail["msg"], detail["type"])
    assert f"body.parameters.origin: {detail['msg']}" in section


def test_the_how_tos_template_works(install: Install) -> None:
    template = install("orders_of_customer", HOWTO.blocks("python")[0].text)
    parameters = {"customer_id": 7, "placed_from": "2026-01-01", "placed_to": "2026-01-31"}

    query = template.query
    assert query is not None
    statement = query(template.parse(parameters))
    text = sqltext.select(statement)

    assert "2026-02-01" in text
    assert isinstance(statement, sa.Select)
    assert set(template.order) <= {column.name for column in statement.selected_columns}
    with pytest.raises(ValueError, match="placed_from is after placed_to"):
        template.parse({**parameters, "placed_to": "2025-01-01"})
