"""When to try again, and after how long."""

import dataclasses
import email.utils
import random
from collections.abc import Callable
from datetime import UTC, datetime

import httpx


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retry:
    """Bounds of the retries of one call; delays in seconds."""

    attempts: int = 6
    """Tries of one request, the first included; 1: no retry."""
    first_delay: float = 0.5
    """Upper end of the first delay; it doubles each time, and each delay is drawn below it."""
    max_delay: float = 15.0
    max_retry_after: float = 60.0
    """A platform that asks for a longer wait (a used-up daily quota) gets no retry."""
    draw: Callable[[], float] = random.random
    """A number from 0 to 1 that spreads the clients who were all turned away at once."""

    def backoff(self, failures: int) -> float:
        """The delay after so many failures in a row."""
        ceiling = min(self.max_delay, self.first_delay * 2.0 ** (failures - 1))
        return ceiling * (0.5 + 0.5 * self.draw())


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the answer asks to wait, whichever of the two forms of Retry-After it uses."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    if (until := _http_date(value)) is None:
        return None
    # The server's own clock, where it shows it: ours may be wrong.
    now = _http_date(response.headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _http_date(value: str) -> datetime | None:
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
