"""How assets are built, on a small tree: the same content makes the same zip, a change another."""

import dataclasses
import os
import pathlib
import struct
import sys
import zipfile

import pytest

from infra import bundling
from infra.bundling import Bundle
from infra.targets import AWS, EMBEDDED, LOCALSTACK, Target

FUNCTIONS = ("api", "worker")


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """A repository with one module in each layer, two functions and no third-party code."""
    files = {
        "layers/core/python/jobplatform/__init__.py": "NAME = 'core'\n",
        "layers/core/python/jobplatform/migrations/versions/0001_jobs.py": "",
        "layers/templates/python/templates/flights.py": "",
        "layers/dependencies/requirements.txt": "",
    }
    for name in FUNCTIONS:
        files[f"functions/{name}/handler.py"] = "def lambda_handler(event, context): ...\n"
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "root"


def names(asset: bundling.Asset) -> set[str]:
    with zipfile.ZipFile(asset.path) as archive:
        return {name for name in archive.namelist() if not name.endswith(".pyc")}


def test_a_layers_folder_is_what_lands_under_opt(root: pathlib.Path) -> None:
    layers = Bundle(EMBEDDED, root=root).layers

    assert names(layers["core"]) == {
        "python/jobplatform/__init__.py",
        "python/jobplatform/migrations/versions/0001_jobs.py",
    }
    assert names(layers["templates"]) == {"python/templates/flights.py"}


def test_a_function_keeps_its_dotted_path(root: pathlib.Path) -> None:
    assert names(Bundle(EMBEDDED, root=root).function("api")) == {"functions/api/handler.py"}


def test_layers_are_merged_into_functions_where_the_emulator_mounts_none(
    root: pathlib.Path,
) -> None:
    bundle = Bundle(LOCALSTACK, root=root)

    assert bundle.layers == {}
    assert names(bundle.function("api")) == {
        "functions/api/handler.py",
        "jobplatform/__init__.py",
        "jobplatform/migrations/versions/0001_jobs.py",
        "templates/flights.py",
    }


def test_the_same_content_makes_the_same_bytes(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = Bundle(EMBEDDED, root=root, build=tmp_path / "first")
    for file in root.rglob("*.py"):
        os.utime(file, (0, 0))
    second = Bundle(EMBEDDED, root=root, build=tmp_path / "second")

    for one, other in (
        (first.function("api"), second.function("api")),
        (first.layers["core"], second.layers["core"]),
    ):
        assert one.hash == other.hash
        assert one.path.read_bytes() == other.path.read_bytes()


def test_functions_with_the_same_code_are_different_assets(root: pathlib.Path) -> None:
    bundle = Bundle(EMBEDDED, root=root)

    assert bundle.function("api").hash != bundle.function("worker").hash


def test_a_change_makes_a_new_asset_of_what_changed_only(root: pathlib.Path) -> None:
    before = Bundle(EMBEDDED, root=root)
    old = {**before.layers, **{name: before.function(name) for name in FUNCTIONS}}
    (root / "functions" / "api" / "handler.py").write_text("def lambda_handler(*_): return 1\n")

    after = Bundle(EMBEDDED, root=root)
    new = {**after.layers, **{name: after.function(name) for name in FUNCTIONS}}
    assert {name for name in new if new[name].hash != old[name].hash} == {"api"}
    assert new["api"].path.exists()


def test_what_did_not_change_is_not_built_again(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bundle(EMBEDDED, root=root).function("api")
    monkeypatch.setattr(bundling.subprocess, "run", refuse)

    Bundle(EMBEDDED, root=root).function("api")


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError(f"not expected: {arguments}")


def test_a_new_migration_changes_the_version_of_the_schema(root: pathlib.Path) -> None:
    before = Bundle(EMBEDDED, root=root).migrations_hash
    folder = root / "layers/core/python/jobplatform/migrations/versions"
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "0001_jobs.cpython-313.pyc").write_bytes(b"by code")
    assert Bundle(EMBEDDED, root=root).migrations_hash == before

    (folder / "0002_more.py").write_text("")
    assert Bundle(EMBEDDED, root=root).migrations_hash != before


def test_byte_code_is_taken_without_a_look_at_the_source(root: pathlib.Path) -> None:
    with zipfile.ZipFile(Bundle(EMBEDDED, root=root).layers["core"].path) as archive:
        compiled = [name for name in archive.namelist() if name.endswith(".pyc")]
        flags = struct.unpack("<I", archive.read(compiled[0])[4:8])[0]

    assert len(compiled) == 2
    assert flags == 0b01  # PEP 552: by hash, never checked


def test_byte_code_names_the_place_where_the_code_will_be(root: pathlib.Path) -> None:
    with zipfile.ZipFile(Bundle(EMBEDDED, root=root).function("api").path) as archive:
        compiled = next(name for name in archive.namelist() if name.endswith(".pyc"))
        content = archive.read(compiled)

    assert b"/var/task/functions/api/handler.py" in content
    assert str(root).encode() not in content


def test_a_runtime_without_an_interpreter_here_goes_without_byte_code(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    bundle = Bundle(dataclasses.replace(EMBEDDED, runtime="python3.99"), root=root)

    assert not bundle.has_byte_code
    with zipfile.ZipFile(bundle.layers["core"].path) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".pyc")]


@pytest.mark.parametrize(("answer", "found"), [("python3.99", True), ("", False)])
def test_an_interpreter_on_the_path_has_to_be_what_its_name_says(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, answer: str, found: bool
) -> None:
    interpreter = tmp_path / "python3.99"
    interpreter.write_text(f"#!/bin/sh\necho {answer}\n")
    interpreter.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    bundle = Bundle(dataclasses.replace(EMBEDDED, runtime="python3.99"), root=tmp_path)

    assert bundle.has_byte_code is found


def test_a_function_that_is_not_there_is_named(root: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"functions/admin/handler\.py is missing"):
        Bundle(EMBEDDED, root=root).function("admin")


@pytest.mark.parametrize("target", [EMBEDDED, LOCALSTACK])
def test_what_lambda_would_refuse_for_its_size_is_refused(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    monkeypatch.setattr(bundling, "MAX_UNZIPPED_BYTES", 10)

    with pytest.raises(ValueError, match="api and its layers take"):
        Bundle(target, root=root).function("api")


def test_certificate_authorities_of_the_database_go_under_opt_once_they_are_there(
    root: pathlib.Path,
) -> None:
    without = Bundle(AWS, root=root)
    assert without.ca_file is None
    before = without.layers["dependencies"].hash

    (root / "layers" / "dependencies" / "rds-ca.pem").write_text("certificates")
    with_file = Bundle(AWS, root=root)
    assert with_file.ca_file == "/opt/rds-ca.pem"
    assert "rds-ca.pem" in names(with_file.layers["dependencies"])
    assert with_file.layers["dependencies"].hash != before
    assert Bundle(EMBEDDED, root=root).ca_file is None


def test_old_zips_go_once_nobody_can_be_copying_them(root: pathlib.Path) -> None:
    handler = root / "functions" / "api" / "handler.py"
    old, newer = (build_with(root, handler, text) for text in ("OLD = 1\n", "NEWER = 1\n"))
    os.utime(old, (0, 0))

    build_with(root, handler, "NEWEST = 1\n")
    assert not old.exists()
    assert newer.exists()


def build_with(root: pathlib.Path, handler: pathlib.Path, text: str) -> pathlib.Path:
    handler.write_text(text)
    return Bundle(EMBEDDED, root=root).function("api").path


def test_this_interpreter_builds_the_embedded_target() -> None:
    assert EMBEDDED.runtime == f"python3.{sys.version_info.minor}"
    assert Bundle(EMBEDDED).has_byte_code
