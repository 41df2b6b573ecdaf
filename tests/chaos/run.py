"""One run: start, load and break, quiet down, check."""

import contextlib
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator

from infra.local import paths
from infra.local.up import LocalTarget
from tests.chaos import plan, protections, report, under_test
from tests.chaos.checks import Checks
from tests.chaos.customers import Customers
from tests.chaos.expected import Expected, own_templates
from tests.chaos.ledger import Ledger
from tests.chaos.options import Options
from tests.chaos.troubles import Troubles

_SETTLE_SECONDS = 120.0
_SETTLE_SECONDS_PER_JOB = 1.5
_CLEANINGS = 20
_FEW_LEFT = 0.05
"""Of all jobs; when no more than these wait or run, the troubles end."""


def run(options: Options, screen: report.Screen) -> Ledger:
    """Runs it all and answers what was found; everything that was started is gone then."""
    with tempfile.TemporaryDirectory(prefix="jobplatform-chaos-") as name:
        folder = pathlib.Path(name)
        # The functions write into it, and PostgreSQL's user has to get through it.
        folder.chmod(0o755)
        faults_file = folder / "faults.json"
        target = LocalTarget(
            folder / "state",
            settings={**under_test.SETTINGS, "FAULTS_FILE": str(faults_file)},
            data_database_url=options.database_url,
            sample_data=options.database_url is None,
        )
        screen.now("starting the embedded target and deploying onto it")
        with target, own_templates():
            run = _Run(options, screen, target, faults_file)
            try:
                return run.run()
            finally:
                run.keep_logs(folder)


class _Run:
    def __init__(
        self,
        options: Options,
        screen: report.Screen,
        target: LocalTarget,
        faults_file: pathlib.Path,
    ) -> None:
        self._options = options
        self._screen = screen
        self._removal = protections.PROTECTIONS[options.without] if options.without else None
        self._dispatcher = self._removal is None or self._removal.dispatcher
        self._platform = under_test.UnderTest(target, faults_file)
        self._platform.add_templates()
        if self._removal is not None:
            self._platform.take_out(self._removal)
        self._expected = Expected(target.state.data_database_url)
        self._ledger = Ledger(plan.make(options, uuid.uuid4().hex[:8]))
        self._customers = Customers(
            self._platform,
            self._ledger,
            self._expected,
            seed=options.seed,
            minutes=options.minutes,
        )
        self._troubles = Troubles(
            self._platform,
            self._ledger,
            seed=options.seed,
            without_dispatcher=not self._dispatcher,
        )

    def run(self) -> Ledger:
        try:
            self._customers.start()
            self._troubles.start()
            until = time.monotonic() + self._options.minutes * 60
            while time.monotonic() < until and not self._is_nearly_over():
                self._show("")
                time.sleep(0.5)
            self._screen.say(f"  no more troubles: {self._state_line()}")
            self._troubles.stop()
            self._settle()
            self._customers.stop()
            self._clean_up()
            states = self.states()
            self._check()
            for table in report.table(self._ledger, states):
                self._screen.console.print(table)
        finally:
            self._troubles.close()
            self._customers.close()
        return self._ledger

    def keep_logs(self, folder: pathlib.Path) -> None:
        """What the functions said and which faults they met, for whoever looks for the cause."""
        kept = paths.ROOT / ".local" / "chaos"
        kept.mkdir(parents=True, exist_ok=True)
        for log in (folder / "state" / "ministack.log", folder / "faults.json.log"):
            if log.exists():
                shutil.copyfile(log, kept / log.name)

    def states(self) -> dict[str, int]:
        rows = self._platform.sql(
            "SELECT status, count(*) FROM jobplatform.jobs WHERE metadata ? 'submission'"
            " GROUP BY status"
        )
        states = {str(status): int(number) for status, number in rows}
        self._ledger.unfinished = states.get("queued", 0) + states.get("running", 0)
        self._ledger.ended = sum(states.values()) - self._ledger.unfinished
        return states

    def _is_nearly_over(self) -> bool:
        few = self._options.jobs * _FEW_LEFT
        return self._customers.all_sent and self._ledger.unfinished <= few

    def _state_line(self) -> str:
        states: dict[str, int] = {}
        with contextlib.suppress(Exception):
            states = self.states()
        return report.line(self._ledger, self._options.jobs, states)

    def _show(self, prefix: str) -> None:
        self._screen.now(prefix + self._state_line())

    def _settle(self) -> None:
        """Waits until every job has ended; those that do not are found by the checks."""
        self.states()
        patience = _SETTLE_SECONDS + _SETTLE_SECONDS_PER_JOB * self._ledger.unfinished
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with self._ignoring_errors():
                if self._dispatcher:
                    self._platform.invoke("dispatcher")
            self._show("quiet now · ")
            if not self._ledger.unfinished:
                return
            time.sleep(1)

    def _clean_up(self) -> None:
        """Ends workers that nobody waits for and lets so much time pass that none can be alive."""
        self._screen.now("cleaning up")
        self._troubles.kill_every_worker()
        self._platform.sql(
            "UPDATE jobplatform.attempts SET started_at = started_at - interval '1 hour'"
        )
        for _ in range(_CLEANINGS):
            if not self._dispatcher or not self._platform.invoke("dispatcher")["cleaned"]:
                break
        self._platform.invoke("purge")

    def _check(self) -> None:
        checks = Checks(
            self._platform,
            self._ledger,
            self._expected,
            self._customers,
            seed=self._options.seed,
        )
        for what in checks.all():
            self._screen.now(f"checking: {what}")

    @contextlib.contextmanager
    def _ignoring_errors(self) -> Iterator[None]:
        with contextlib.suppress(Exception):
            yield
