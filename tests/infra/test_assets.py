"""What is deployed, unpacked as Lambda does it: it imports by itself and fits its machine."""

import json
import pathlib
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import boto3
import pytest

from infra.bundling import MAX_UNZIPPED_BYTES, Bundle
from infra.targets import AWS, EMBEDDED, LOCALSTACK, Target

FUNCTIONS = ("api", "worker", "dispatcher", "purge", "migrate", "admin")
# What Lambda's Python runtimes bring along.
OF_THE_RUNTIME = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six.py", "urllib3")
ELF_MACHINE = {"x86_64": 62, "arm64": 183}

IMPORT_THE_HANDLER = """
import importlib, json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
name = sys.argv[2]
sys.dont_write_bytecode = True
module = importlib.import_module(f"functions.{name}.handler")
ours = [
    one for one in list(sys.modules.values())
    if (getattr(one, "__file__", None) or "").startswith(sys.argv[3])
    and one.__file__.endswith(".py")
]
print(json.dumps({
    "handler": callable(module.lambda_handler),
    "modules": len(ours),
    "without_byte_code": [one.__name__ for one in ours if not os.path.exists(one.__cached__)],
}))
"""


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runtime")
    site_packages = pathlib.Path(boto3.__file__).parents[1]
    for name in OF_THE_RUNTIME:
        (folder / name).symlink_to(site_packages / name)
    return folder


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("opt")
    for asset in Bundle(EMBEDDED).layers.values():
        unpack(asset.path, folder)
    return folder


@pytest.mark.parametrize("name", FUNCTIONS)
def test_handler_imports_from_its_own_zip_and_the_layers_alone(
    name: str, opt: pathlib.Path, runtime: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Emulators let their own packages and environment leak into functions; AWS does not."""
    task = unpack(Bundle(EMBEDDED).function(name).path, tmp_path / "task")
    search = [str(task), str(opt / "python"), str(runtime)]

    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", IMPORT_THE_HANDLER, json.dumps(search), name, str(opt)],
        env={"POWERTOOLS_TRACE_DISABLED": "true"},
        capture_output=True,
        text=True,
    )

    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["handler"]
    assert found["modules"] > 50
    assert found["without_byte_code"] == []


def libraries(archive: pathlib.Path) -> Iterator[tuple[str, int]]:
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            if name.endswith(".so"):
                header = opened.read(name)[:20]
                assert header[:4] == b"\x7fELF", name
                yield name, struct.unpack("<H", header[18:20])[0]


@pytest.mark.parametrize("target", [AWS, LOCALSTACK], ids=lambda target: target.name)
def test_compiled_wheels_are_for_the_targets_machine_and_python(target: Target) -> None:
    bundle = Bundle(target)
    asset = bundle.function("api") if target.merge_layers else bundle.layers["dependencies"]
    found = dict(libraries(asset.path))

    assert any("pydantic_core" in name for name in found)
    assert any("isal" in name for name in found)
    version = target.runtime.removeprefix("python").replace(".", "")
    for name, machine in found.items():
        assert machine == ELF_MACHINE[target.architecture], name
        assert f"cpython-{version}-" in name or ".abi3." in name, name


@pytest.mark.parametrize("target", [AWS, LOCALSTACK, EMBEDDED], ids=lambda target: target.name)
def test_function_and_layers_fit_into_lambda(target: Target) -> None:
    bundle = Bundle(target)
    zips = [bundle.function("api"), *bundle.layers.values()]
    size = 0
    for asset in zips:
        with zipfile.ZipFile(asset.path) as opened:
            size += sum(entry.file_size for entry in opened.infolist())

    assert size < MAX_UNZIPPED_BYTES


def test_metadata_that_packages_read_about_themselves_is_shipped(opt: pathlib.Path) -> None:
    """pg8000 asks for its own version when it is imported."""
    for package in ("pg8000", "aws_lambda_powertools"):
        assert list((opt / "python").glob(f"{package}-*.dist-info/METADATA"))


def test_layers_bring_no_client_and_nothing_that_the_runtime_has(opt: pathlib.Path) -> None:
    for package in ("boto3", "botocore", "jobclient", "httpx", "infra", "tests", "pytest"):
        assert not (opt / "python" / package).exists()
