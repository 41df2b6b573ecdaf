"""The documentation says what the code does: links, settings, errors, states, plans, commands."""

import ast
import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest
import typer.main

import jobplatform
from functions.api import views
from infra.constructs import rest_api
from jobclient import commands
from jobplatform import errors, jobs, plans, problems, settings
from tests.helpers import pages
from tests.helpers.pages import Page

PAGES = pages.all_pages()
ERRORS = pages.page("docs/reference/errors.md")
SETTINGS = pages.page("docs/reference/settings.md")
STATES = pages.page("docs/reference/states.md")
API = pages.page("docs/reference/api.md")

# Codes that are written down where something ends, and are no class of `jobplatform.errors`.
BESIDE_THE_CLASSES = {"internal_error", "database_error", "worker_lost", "transient_error"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_links_lead_somewhere(page: Page) -> None:
    broken = []
    for link in page.links():
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        if not path.exists() or (anchor and anchor not in Page(path).anchors()):
            broken.append(link)

    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [pages.ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in reached or path.suffix != ".md" or not path.exists():
            continue
        reached.add(path)
        links = (link.partition("#")[0] for link in Page(path).links())
        waiting += [(path.parent / link).resolve() for link in links if link]

    assert [page.name for page in PAGES if page.path not in reached] == []


@each_page
def test_nothing_of_the_machine_it_was_written_on_is_in_a_page(page: Page) -> None:
    assert re.findall(r"(?<![\w.])/(?:root|home|work|tmp|Users)\b\S*", page.text) == []


@each_page
def test_python_and_json_in_a_page_can_be_read(page: Page) -> None:
    for block in page.blocks("python"):
        ast.parse(block.text)
    for block in page.blocks("json"):
        json.loads(block.text)


def _commands_of(group: object, name: str) -> set[str]:
    children = getattr(group, "commands", None)
    if children is None:
        return {name}
    return set().union(*(_commands_of(child, f"{name} {key}") for key, child in children.items()))


JOBCTL = _commands_of(typer.main.get_command(commands.app), "jobctl")
MAKE = set(re.findall(r"^([a-z0-9-]+):", (pages.ROOT / "Makefile").read_text(), re.MULTILINE))


@each_page
def test_commands_in_a_page_exist(page: Page) -> None:
    unknown = []
    for line in page.commands():
        for found in re.findall(r"\bjobctl((?: [a-z][a-z-]*)+)", line):
            words = found.split()
            tried = {"jobctl " + " ".join(words[:count]) for count in range(1, len(words) + 1)}
            if not tried & JOBCTL:
                unknown.append(line)
        for found in re.findall(r"\bmake((?: -s)?(?: [a-z][a-z-]*)+)", line):
            unknown += [f"make {word}" for word in found.split() if word not in {*MAKE, "-s"}]

    assert unknown == []


def _groups() -> list[type[settings.Settings]]:
    return settings.Settings.__subclasses__()


@pytest.mark.parametrize("group", _groups(), ids=lambda group: group.__name__)
def test_every_setting_is_documented_with_its_default(group: type[settings.Settings]) -> None:
    documented = {row[0].strip("`"): row[1].strip("`") for row in SETTINGS.rows()}

    for name, field in group.model_fields.items():
        variable = group.variable(name)
        assert variable in documented, f"settings.md has no row for {variable}"
        shown = documented[variable]
        if field.is_required() or field.default in (None, ""):
            assert shown == "", variable
        else:
            required = {
                group.variable(other): "postgresql://somewhere/name"
                for other, its in group.model_fields.items()
                if its.is_required()
            }
            read = group.from_env({**required, variable: shown})
            assert getattr(read, name) == field.default, variable


def test_no_setting_is_documented_that_does_not_exist() -> None:
    known = {group.variable(name) for group in _groups() for name in group.model_fields}
    prefixes = tuple(group.prefix for group in _groups())
    documented = {row[0].strip("`") for row in SETTINGS.rows()}

    assert {name for name in documented if name.startswith(prefixes)} == known


def test_the_plans_are_those_of_the_code() -> None:
    def number(text: str) -> int | None:
        if not text:
            return None
        value, _, unit = text.replace(",", "").partition(" ")
        return int(value) * (2**30 if unit == "GiB" else 1)

    documented = {
        row[0].strip("`"): [number(cell) for cell in row[1:]] for row in SETTINGS.rows("Plans")[1:]
    }

    assert documented == {
        plan.name: [
            plan.requests_per_second,
            plan.burst,
            plan.requests_per_day,
            plan.max_queued,
            plan.max_waits,
            plan.weight,
            plan.max_rows,
            plan.max_bytes,
        ]
        for plan in plans.PLANS.values()
    }


def _error_classes() -> set[type[errors.PlatformError]]:
    for module in pkgutil.walk_packages(jobplatform.__path__, "jobplatform."):
        if ".migrations." not in module.name:
            importlib.import_module(module.name)
    found: set[type[errors.PlatformError]] = set()
    waiting: list[type[errors.PlatformError]] = [errors.PlatformError]
    while waiting:
        kind = waiting.pop()
        found.add(kind)
        waiting += kind.__subclasses__()
    # Tests may have classes of their own.
    return {kind for kind in found if kind.__module__.startswith("jobplatform")}


def test_every_code_has_a_heading_and_every_heading_a_code() -> None:
    codes = {kind.code for kind in _error_classes()}
    codes |= {answer.code for answer in rest_api.ANSWERS.values()}
    headings = {heading for heading in ERRORS.headings() if re.fullmatch(r"[a-z_]+", heading)}

    assert headings == codes | BESIDE_THE_CLASSES


def _statuses() -> dict[str, int]:
    """Of what a request can be answered, by code."""
    found = {answer.code: answer.status for answer in rest_api.ANSWERS.values()}
    return found | {kind.code: status.value for kind, status in problems.STATUS.items()}


@pytest.mark.parametrize("code", sorted(_statuses()))
def test_an_error_of_the_api_is_documented_with_its_status(code: str) -> None:
    assert re.search(rf"^### {code}\n\n`{_statuses()[code]}`[.,]", ERRORS.text, re.MULTILINE)


@pytest.mark.parametrize(
    ("code", "seconds"),
    [
        *(
            (kind.code, int(kind.retry_after.total_seconds()))
            for kind in problems.STATUS
            if kind.retry_after is not None
        ),
        *(
            (answer.code, answer.retry_after)
            for answer in rest_api.ANSWERS.values()
            if answer.retry_after is not None
        ),
    ],
)
def test_a_wait_that_is_asked_for_is_documented(code: str, seconds: int) -> None:
    assert re.search(
        rf"^### {code}\n\n`\d+`, `Retry-After: {seconds}`\.", ERRORS.text, re.MULTILINE
    )


def test_the_picture_of_the_states_is_the_table_of_transitions() -> None:
    (picture,) = STATES.blocks("mermaid")
    drawn = set(re.findall(r"^ +(\S+) --> ([^\s:]+)", picture.text, re.MULTILINE))

    expected = {(str(start), str(end)) for start, ends in jobs.TRANSITIONS.items() for end in ends}
    expected |= {("[*]", "queued")} | {(str(status), "[*]") for status in jobs.FINAL}
    assert drawn == expected


def test_every_state_has_its_sentence() -> None:
    documented = {row[0].strip("`") for row in STATES.rows()}

    assert set(jobs.JobStatus) <= documented


def test_the_example_of_a_job_has_the_fields_that_a_job_has() -> None:
    example = json.loads(API.section("The job").split("```json\n")[1].split("```")[0])

    assert views.JobView.model_validate(example).model_dump(mode="json").keys() == example.keys()
    assert example["result"].keys() == views.ResultView.model_fields.keys()


def test_the_example_of_a_download_has_the_fields_that_a_download_has() -> None:
    example = json.loads(API.section("Download a result").split("```json\n")[1].split("```")[0])

    assert example.keys() == views.DownloadView.model_fields.keys()


def test_the_fields_of_a_submit_and_the_formats_are_documented() -> None:
    fields = {row[0].strip("`") for row in API.rows("Submit a job")}
    formats = {row[0].strip("`") for row in API.rows("Formats")}

    assert views.SubmitJobRequest.model_fields.keys() <= fields
    assert set(jobs.ResultFormat) <= formats


def test_every_field_of_a_template_is_documented() -> None:
    from jobplatform.templating import Template

    page = pages.page("docs/reference/templates.md")

    assert [name for name in Template.__dataclass_fields__ if f"`{name}`" not in page.text] == []
