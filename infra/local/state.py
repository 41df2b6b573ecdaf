"""What runs, written down in `state.json`, so that another command finds it again."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, Self

from infra.local.ministack import REGION, RunningMiniStack
from infra.local.postgres import RunningPostgres
from infra.local.processes import NOTE_SUFFIX, ProcessRef, uninterrupted

_FILE = "state.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """One instance of the embedded target, whole or half started."""

    state_dir: Path
    ministack: RunningMiniStack | None = None
    postgres: RunningPostgres | None = None
    """None: the database is the person's own."""
    database_url: str = ""
    data_database_url: str = ""
    stack: str = ""
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    """An API key for each plan."""

    @classmethod
    def load(cls, state_dir: Path) -> Self | None:
        """None when nothing was started in this folder."""
        try:
            stored = json.loads((state_dir / _FILE).read_text())
        except FileNotFoundError:
            return None
        for name, kind in (("ministack", RunningMiniStack), ("postgres", RunningPostgres)):
            if (fields := stored[name]) is not None:
                stored[name] = kind(**{**fields, "process": ProcessRef(**fields["process"])})
        return cls(**{**stored, "state_dir": state_dir})

    def save(self) -> None:
        unfinished = self.state_dir / f"{_FILE}.unfinished"
        unfinished.touch(mode=0o600)
        unfinished.write_text(json.dumps(dataclasses.asdict(self), indent=2, default=str))
        os.replace(unfinished, self.state_dir / _FILE)

    @property
    def api_url(self) -> str:
        return self.outputs.get("ApiUrl", "")

    @property
    def is_running(self) -> bool:
        """True when everything was started to the end and is alive."""
        servers = [self.ministack, self.postgres]
        alive = all(server.process.is_alive() for server in servers if server is not None)
        return self.ministack is not None and bool(self.keys) and alive

    def stop(self) -> None:
        """Ends what lives of it and removes its folder."""
        with uninterrupted():
            # Commands that a killed `up` was waiting for.
            for note in self.state_dir.glob(f"*{NOTE_SUFFIX}"):
                ProcessRef.load(note).stop(polite=signal.SIGKILL, patience=5)
            for server in (self.ministack, self.postgres):
                if server is not None:
                    server.stop()
            shutil.rmtree(self.state_dir, ignore_errors=True)

    def as_status(self) -> dict[str, Any]:
        """What `make -s status` prints."""
        return {
            "running": self.is_running,
            "target": "embedded",
            "api_url": self.api_url,
            "keys": self.keys,
            "database_url": self.database_url,
            "data_database_url": self.data_database_url,
            "aws_endpoint_url": self.ministack.endpoint_url if self.ministack else "",
            "aws_region": REGION,
            "stack": self.stack,
            "outputs": self.outputs,
            "pids": {
                name: server.process.pid
                for name, server in (("postgres", self.postgres), ("ministack", self.ministack))
                if server is not None
            },
            "state_dir": str(self.state_dir),
        }


def status(state_dir: Path) -> dict[str, Any]:
    return (State.load(state_dir) or State(state_dir=state_dir)).as_status()
