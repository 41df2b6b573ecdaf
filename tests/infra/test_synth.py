"""`cdk synth` as a person runs it, with nothing on the machine but our Python and its packages."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import infra
from infra.bundling import ROOT
from infra.local import cdk
from infra.targets import TARGETS


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No credentials, no region, no system Node, no Docker: a PATH with our Python alone."""
    home = tmp_path_factory.mktemp("home")
    only_python = home / "bin"
    only_python.mkdir()
    python = only_python / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return {"PATH": str(only_python), "HOME": str(home)}


def run(
    command: list[str], environment: dict[str, str], **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env={**environment, **more}, capture_output=True, text=True
    )


# The first one unpacks the CDK into the empty home.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_is_synthesized_without_node_docker_or_credentials(
    target: str, bare_environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    for tool in ("node", "docker"):
        assert shutil.which(tool, path=bare_environment["PATH"]) is None
    command = [str(word) for word in cdk.command("synth", "--quiet")]
    command += ["--context", f"target={target}", "--output", str(tmp_path / "cdk.out")]

    done = run(command, bare_environment)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cdk.out" / "JobPlatformService.template.json").exists()


def test_missing_certificate_authorities_are_said_at_synth(
    bare_environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    """`cdk deploy --strict` then refuses, before a database is made that nobody can verify."""
    if (ROOT / "layers" / "dependencies" / "rds-ca.pem").exists():
        pytest.skip("the certificate authorities are there")
    command = [str(word) for word in cdk.command("synth", "--quiet", "--strict")]
    command += ["--context", "target=aws", "--output", str(tmp_path / "cdk.out")]

    done = run(command, bare_environment)

    assert done.returncode != 0
    assert "rds-ca.pem is missing" in done.stderr
    assert done.stderr.count("WARNING") == 1


def test_no_lookup_ties_the_templates_to_an_account() -> None:
    assert not (ROOT / "cdk.context.json").exists()


def test_our_own_node_is_preferred_to_the_systems() -> None:
    node = infra.packaged_node()

    assert node is not None
    assert os.environ["JSII_NODE"] == str(node)


def test_an_unknown_target_is_refused_by_name(bare_environment: dict[str, str]) -> None:
    done = run(
        [sys.executable, "-m", "infra.app"],
        bare_environment,
        CDK_CONTEXT_JSON='{"target": "azure"}',
    )

    assert done.returncode != 0
    assert done.stderr.startswith("There is no target 'azure'")
