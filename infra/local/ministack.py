"""MiniStack, the AWS emulator, in a virtual environment of its own; Lambdas run in its interpreter.

It starts with a bare environment: what it has leaks into every function and would hide a forgotten
setting.
"""

import dataclasses
import os
import signal
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from infra.local import paths
from infra.local.errors import LocalError
from infra.local.processes import ProcessRef, free_port, wait_until

REGION = "us-east-1"
ACCOUNT = "000000000000"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunningMiniStack:
    process: ProcessRef
    port: int

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environ(self) -> dict[str, str]:
        """Variables that point every AWS SDK and the CDK here, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def stop(self) -> None:
        # All that it has is in memory, or in a folder that is removed next, so there is nothing to
        # wait for. The functions' processes are in its group and end with it.
        self.process.stop(polite=signal.SIGKILL, patience=5)


class MiniStack:
    """Starts the emulator with everything it writes in `folder`; its state is gone when it ends."""

    def __init__(self, folder: Path, *, keep_functions_warm_seconds: int = 60) -> None:
        self._folder = folder
        self._keep_warm = keep_functions_warm_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._running: RunningMiniStack | None = None

    def __enter__(self) -> Self:
        self.launch()
        self.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log(self) -> Path:
        return self._folder / "ministack.log"

    def launch(self) -> RunningMiniStack:
        """Starts the process and returns at once; `wait` returns when it answers."""
        if not paths.EMULATOR_PYTHON.exists():
            raise LocalError(f"There is no {paths.EMULATOR_PYTHON}. Run `make setup`.")
        temporary = self._folder / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        port = free_port()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [paths.EMULATOR_PYTHON, "-m", "ministack"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._folder,
                env={
                    "PATH": os.defpath,
                    "LANG": "C.UTF-8",
                    "TZ": "UTC",
                    "HOME": str(self._folder),
                    "TMPDIR": str(temporary),
                    "S3_DATA_DIR": str(temporary / "s3"),
                    "STATE_DIR": str(temporary / "state"),
                    "GATEWAY_PORT": str(port),
                    "BIND_HOST": "127.0.0.1",
                    "MINISTACK_REGION": REGION,
                    "MINISTACK_ACCOUNT_ID": ACCOUNT,
                    "LAMBDA_WARM_TTL_SECONDS": str(self._keep_warm),
                },
            )
        self._running = RunningMiniStack(process=ProcessRef.of(self._process.pid), port=port)
        return self._running

    def wait(self) -> None:
        assert self._process is not None, "launch() comes first"
        wait_until(
            self._is_healthy, process=self._process, what="MiniStack", log=self.log, seconds=60
        )

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None
        if self._process is not None:
            # It has ended: this only tells Popen so.
            self._process.wait(timeout=10)
            self._process = None

    def _is_healthy(self) -> bool:
        assert self._running is not None
        try:
            with urllib.request.urlopen(
                f"{self._running.endpoint_url}/_ministack/health", timeout=2
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
