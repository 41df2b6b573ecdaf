"""A doorbell that was given up shows on its job, and its job is rung for again."""

import datetime as dt
import uuid
from collections.abc import Iterable

import sqlalchemy as sa

from jobplatform import database, operator_store
from jobplatform.observability import logger
from jobplatform.queue import DeadLetter, DeadLetters

_AT_ONCE = 100


def note_dead_letters(engine: sa.Engine, dead_letters: DeadLetters) -> int:
    """Looks at a bounded number and leaves them where they are: how many jobs did not know yet."""
    return note(engine, dead_letters.look(limit=_AT_ONCE) if dead_letters.count() else ())


def note(engine: sa.Engine, letters: Iterable[DeadLetter]) -> int:
    """The same for letters that somebody has looked at."""
    sent: dict[uuid.UUID, dt.datetime] = {}
    for letter in letters:
        if letter.job_id is not None:
            sent[letter.job_id] = max(letter.sent_at, sent.get(letter.job_id, letter.sent_at))
    if not sent:
        return 0
    with database.transaction(engine) as conn:
        news = operator_store.note_dead_letters(conn, sent)
    for job_id in news:
        logger.warning("doorbell given up", job_id=str(job_id))
    return len(news)
