"""Importing any module does nothing but import: no environment, no network, no files written."""

import configparser
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import jobplatform

ROOT = Path(__file__).parents[2]
FUNCTIONS = sorted(path.parent.name for path in (ROOT / "functions").glob("*/handler.py"))

# Runs before anything of ours is imported, in a process of its own.
_WATCH = """
import importlib, json, os, pkgutil, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen",
                 "os.system", "os.fork", "os.posix_spawn", "sqlite3.connect"):
        raise RuntimeError(f"{event} at import: {arguments}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise RuntimeError(f"a file written at import: {arguments}")

sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
sys.addaudithook(watch)
found = []
for package in ("jobplatform", "jobclient", "templates"):
    module = importlib.import_module(package)
    found.append(package)
    for info in pkgutil.walk_packages(module.__path__, f"{package}."):
        # Alembic executes it, with an engine; others import the rest.
        if info.name not in ("jobplatform.migrations.env", "jobclient.__main__"):
            importlib.import_module(info.name)
            found.append(info.name)
for function in json.loads(sys.argv[2]):
    for name in os.listdir(os.path.join(sys.argv[1], "functions", function)):
        if name.endswith(".py"):
            importlib.import_module(f"functions.{function}.{name.removesuffix('.py')}")
            found.append(f"functions.{function}")
print(json.dumps(found))
"""


def test_every_module_imports_without_environment_network_or_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _WATCH, str(ROOT), json.dumps(FUNCTIONS)],
        env={},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr[-3_000:]
    found = json.loads(done.stdout)
    assert {"jobplatform.job_store", "jobclient.client", "templates.flights"} <= set(found)
    assert {f"functions.{function}" for function in FUNCTIONS} <= set(found)


def test_import_rules_know_every_module_and_function() -> None:
    """A module that no layer names would be free of them all."""
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")
    named = set(rules["importlinter:contract:layers"]["layers"].replace(":", " ").split())
    modules = {f"jobplatform.{info.name}" for info in pkgutil.iter_modules(jobplatform.__path__)}

    assert modules <= named
    assert {f"functions.{function}" for function in FUNCTIONS} <= named


def test_functions_have_no_package_of_their_own() -> None:
    """One `functions/__init__.py` in one asset would hide all the others."""
    assert list((ROOT / "functions").rglob("__init__.py")) == []
