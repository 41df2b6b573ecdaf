"""Each target is synthesized once a session, in process: starting the CDK's Node takes seconds."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from infra import app
from infra.bundling import Bundle
from infra.targets import TARGETS, Target
from tests.infra.template import Template


@dataclasses.dataclass(frozen=True)
class Synthesized:
    target: Target
    folder: pathlib.Path
    data: Template
    service: Template

    @property
    def templates(self) -> tuple[Template, Template]:
        return self.data, self.service

    @property
    def bundle(self) -> Bundle:
        return Bundle(self.target)


Synthesize = Callable[..., Synthesized]


@pytest.fixture(scope="session")
def synthesize(tmp_path_factory: pytest.TempPathFactory) -> Synthesize:
    @functools.cache
    def synthesize_once(target: str, context: str) -> Synthesized:
        folder = tmp_path_factory.mktemp(f"cdk-{target}")
        app.build({"target": target, **json.loads(context)}, outdir=folder).synth()
        prefix = json.loads(context).get("prefix", "JobPlatform")
        return Synthesized(
            TARGETS[target],
            folder,
            Template(folder / f"{prefix}Data.template.json"),
            Template(folder / f"{prefix}Service.template.json"),
        )

    def synthesize(target: str, **context: Any) -> Synthesized:
        return synthesize_once(target, json.dumps(context, sort_keys=True))

    return synthesize


@pytest.fixture(scope="session")
def aws_target(synthesize: Synthesize) -> Synthesized:
    return synthesize("aws")


@pytest.fixture(scope="session", params=sorted(TARGETS))
def any_target(request: pytest.FixtureRequest, synthesize: Synthesize) -> Synthesized:
    return synthesize(request.param)
