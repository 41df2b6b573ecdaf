"""Builds what Lambda runs, in pure Python without Docker: zips under `.build/`.

The wheels are picked for the target's platform and Python. Byte code goes into the zips, because
importing without it takes about three times as long at every cold start. A zip is rebuilt only when
what goes into it changed.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import pathlib
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator

from infra.local import install
from infra.targets import Target

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = ("core", "templates", "dependencies")
MAX_UNZIPPED_BYTES = 250 * 2**20
"""Lambda's limit for a function and its layers together."""
CA_BUNDLE = pathlib.PurePosixPath("rds-ca.pem")
"""In `layers/dependencies/`: the certificate authorities of RDS, which the adopter downloads."""

_NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".DS_Store")
_NOT_NEEDED_AT_RUN_TIME = (
    ".lock",
    "bin",
    "**/tests",
    "**/__pycache__",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
)
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_STALE_AFTER_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Asset:
    """A zip file and the hash of what went into it."""

    path: pathlib.Path
    hash: str


@dataclasses.dataclass(frozen=True)
class _Tree:
    """A folder as it lies under /opt (a layer) or /var/task (a function)."""

    path: pathlib.Path
    hash: str
    unzipped_bytes: int


class Bundle:
    """The assets of one target. `root` is the repository, `build` where the assets go."""

    def __init__(
        self, target: Target, *, root: pathlib.Path = ROOT, build: pathlib.Path | None = None
    ) -> None:
        self._target = target
        self._root = root
        self._build = (build or root / ".build") / target.name
        self._compiler = _interpreter_for(target.runtime)
        self._layer_trees: dict[str, _Tree] = {}

    @property
    def has_byte_code(self) -> bool:
        """False where no Python of the runtime's version is at hand; imports are then slower."""
        return self._compiler is not None

    @property
    def ca_file(self) -> str | None:
        """Where a function finds the certificate authorities of RDS; None: nowhere."""
        if self._target.database is None or not self._ca_bundle.exists():
            return None
        return f"/opt/{CA_BUNDLE}"

    @property
    def migrations_hash(self) -> str:
        """Changes when a migration is added or changed."""
        return content_hash(
            self._root / "layers" / "core" / "python" / "jobplatform" / "migrations"
        )

    @functools.cached_property
    def layers(self) -> dict[str, Asset]:
        """The layers to mount; none where the functions' own zips hold them."""
        if self._target.merge_layers:
            return {}
        with self._lock():
            return {name: self._zip(f"layer-{name}", self._layer(name)) for name in LAYERS}

    def function(self, name: str) -> Asset:
        """The zip of `functions/<name>`, in which the handler keeps its dotted path."""
        with self._lock():
            tree = self._function(name)
            layers = [self._layer(layer) for layer in LAYERS]
            _check_size(name, [tree, *layers])
            if self._target.merge_layers:
                return self._zip(name, tree, *layers, layer_prefix="python/")
            return self._zip(name, tree)

    def _function(self, name: str) -> _Tree:
        source = self._root / "functions" / name
        if not (source / "handler.py").exists():
            raise FileNotFoundError(f"functions/{name}/handler.py is missing")

        def build(tree: pathlib.Path) -> None:
            shutil.copytree(source, tree / "functions" / name, ignore=_NOT_SHIPPED)
            self._compile(tree, "/var/task")

        return self._tree(f"functions/{name}", content_hash(source), build)

    def _layer(self, name: str) -> _Tree:
        if name not in self._layer_trees:
            build = self._dependencies if name == "dependencies" else self._source_layer
            self._layer_trees[name] = build(name)
        return self._layer_trees[name]

    def _source_layer(self, name: str) -> _Tree:
        source = self._root / "layers" / name / "python"

        def build(tree: pathlib.Path) -> None:
            shutil.copytree(source, tree / "python", ignore=_NOT_SHIPPED)
            self._compile(tree, "/opt")

        return self._tree(f"layers/{name}", content_hash(source), build)

    def _dependencies(self, name: str) -> _Tree:
        requirements = self._root / "layers" / name / "requirements.txt"
        wheels = self._target.wheel_platform or f"{platform.system()}-{platform.machine()}"
        key = [requirements.read_bytes(), wheels.encode()]
        if self.ca_file:
            key.append(self._ca_bundle.read_bytes())

        def build(tree: pathlib.Path) -> None:
            packages = tree / "python"
            _install(requirements, packages, self._target)
            for pattern in _NOT_NEEDED_AT_RUN_TIME:
                for found in list(packages.glob(pattern)):
                    shutil.rmtree(found) if found.is_dir() else found.unlink()
            if self.ca_file:
                shutil.copyfile(self._ca_bundle, tree / CA_BUNDLE)
            self._compile(tree, "/opt")

        return self._tree(f"layers/{name}", _digest(*key), build)

    @property
    def _ca_bundle(self) -> pathlib.Path:
        return self._root / "layers" / "dependencies" / CA_BUNDLE

    def _tree(self, name: str, key: str, build: Callable[[pathlib.Path], None]) -> _Tree:
        """Builds a tree unless the one that is there was made of the same."""
        digest = _digest(
            name.encode(),
            key.encode(),
            pathlib.Path(__file__).read_bytes(),
            self._target.runtime.encode(),
            str(self._compiler is not None).encode(),
        )
        tree = self._build / name
        stamp = tree.parent / f"{tree.name}.stamp"
        made_of, _, size = stamp.read_text().partition(" ") if stamp.exists() else ("", "", "")
        if made_of != digest or not tree.is_dir():
            stamp.unlink(missing_ok=True)
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir(parents=True)
            build(tree)
            size = str(sum(file.stat().st_size for file in _files(tree)))
            stamp.write_text(f"{digest} {size}")
        return _Tree(tree, digest, int(size))

    def _compile(self, tree: pathlib.Path, mounted_at: str) -> None:
        """Adds byte code that is taken as it is, whatever the time stamps that unzipping leaves."""
        if self._compiler is None:
            return
        command = [self._compiler, "-I", "-m", "compileall", "-q", "-j", "0"]
        command += ["--invalidation-mode", "unchecked-hash"]
        command += ["-s", str(tree), "-p", mounted_at, str(tree)]
        subprocess.run(command, check=True)

    def _zip(self, name: str, *trees: _Tree, layer_prefix: str = "") -> Asset:
        """Packs the trees; those after the first are layers, whose content loses `layer_prefix`."""
        digest = _digest(*(tree.hash.encode() for tree in trees), layer_prefix.encode())[:32]
        path = self._build / f"{name}-{digest}.zip"
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
                for position, tree in enumerate(trees):
                    for file in _files(tree.path):
                        inside = file.relative_to(tree.path).as_posix()
                        if position:
                            inside = inside.removeprefix(layer_prefix)
                        entry = zipfile.ZipInfo(inside, _ZIP_EPOCH)
                        entry.compress_type = zipfile.ZIP_DEFLATED
                        entry.external_attr = 0o644 << 16
                        archive.writestr(entry, file.read_bytes())
            unfinished.replace(path)
            self._drop_old_zips(name, keep=path)
        return Asset(path, digest)

    def _drop_old_zips(self, name: str, *, keep: pathlib.Path) -> None:
        # Not the newest ones: another synth may be copying them.
        for old in self._build.glob(f"{name}-{'[0-9a-f]' * 32}.zip"):
            if old != keep and old.stat().st_mtime < time.time() - _STALE_AFTER_SECONDS:
                old.unlink()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One builder at a time, across processes."""
        self._build.mkdir(parents=True, exist_ok=True)
        with (self._build / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def content_hash(folder: pathlib.Path) -> str:
    """A hash of the names and contents of a folder's files, byte code left out."""
    parts: list[bytes] = []
    for file in _files(folder):
        if "__pycache__" not in file.parts and file.suffix != ".pyc":
            parts += [file.relative_to(folder).as_posix().encode(), file.read_bytes()]
    return _digest(*parts)


def _files(folder: pathlib.Path) -> Iterable[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def _check_size(name: str, trees: Iterable[_Tree]) -> None:
    size = sum(tree.unzipped_bytes for tree in trees)
    if size >= MAX_UNZIPPED_BYTES:
        raise ValueError(
            f"The function {name} and its layers take {size / 2**20:.0f} MiB unzipped; Lambda takes"
            f" less than {MAX_UNZIPPED_BYTES / 2**20:.0f} MiB. Leave out what it can do without."
        )


def _install(requirements: pathlib.Path, folder: pathlib.Path, target: Target) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--link-mode", "copy"]
    command += ["--target", str(folder), "-r", str(requirements)]
    if target.wheel_platform is None:
        command += ["--python", sys.executable]
    else:
        command += ["--python-platform", target.wheel_platform]
        command += ["--python-version", target.runtime.removeprefix("python")]
    subprocess.run(command, check=True, env=install.uv_environ())


def _interpreter_for(runtime: str) -> str | None:
    """A Python whose byte code the runtime can load: this one, or one on the PATH."""
    if runtime == f"python{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    found = shutil.which(runtime)
    if found is None:
        return None
    # A version manager's stand-in can be on the PATH without an interpreter behind it.
    answer = subprocess.run(
        [found, "-c", "import sys; print('python%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
    )
    return found if answer.stdout.strip() == runtime else None
