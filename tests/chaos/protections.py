"""The platform with one protection taken out, to prove that chaos would notice.

Each is a change of the layer's source or of the deployed platform, made to this run's copy alone. A
text that is not found any more stops the run: the product has changed, and the change here has to
follow it.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Removal:
    """How a protection is taken out."""

    meaning: str
    edits: tuple[tuple[str, str, str], ...] = ()
    """Module of `jobplatform`, a regular expression in its source, what comes in its place; every
    place that fits."""
    statements: tuple[str, ...] = ()
    """SQL, after the deployment."""
    dispatcher: bool = True


PROTECTIONS = {
    "attempt-token": Removal(
        meaning="a worker's writes are not fenced by the token of its attempt",
        edits=(("job_store.py", r"jobs\.c\.attempt_token == token,?", ""),),
    ),
    "lease-renewal": Removal(
        meaning="the heartbeat does not renew the lease",
        edits=(("job_store.py", r"lease_expires_at=sa\.func\.now\(\) \+ lease,", ""),),
    ),
    "dispatcher": Removal(meaning="nobody rings again, rescues and cleans up", dispatcher=False),
    "unique-key": Removal(
        meaning="an insert looks for the key, but nothing in the database holds keys to be unique",
        edits=(
            (
                "job_store.py",
                r"ON CONFLICT \(client_id, idempotency_key\) WHERE idempotency_key IS NOT NULL"
                r" DO NOTHING",
                "AND NOT EXISTS (SELECT 1 FROM jobplatform.jobs AS k WHERE k.client_id = :client_id"
                " AND k.idempotency_key = CAST(:idempotency_key AS text))",
            ),
        ),
        statements=("DROP INDEX jobplatform.jobs_idempotency_key",),
    ),
    "publish-fence": Removal(
        meaning="a result is published whoever owns the job by now, cancelled or not",
        edits=(
            (
                "job_store.py",
                r"(def publish\(.*?\.where\(\s*jobs\.c\.id == job_id),.*?(\)\s*\.values\()",
                r"\1\2",
            ),
        ),
    ),
}


def apply(removal: Removal, sources: dict[str, str]) -> dict[str, str]:
    """The changed modules; `sources` are all of them by name."""
    changed = dict(sources)
    for module, pattern, replacement in removal.edits:
        changed[module], count = re.subn(pattern, replacement, changed[module], flags=re.DOTALL)
        if not count:
            raise LookupError(
                f"{module} has nothing like {pattern!r} any more; tests/chaos/protections.py has to"
                " follow it"
            )
    return {name: text for name, text in changed.items() if text != sources[name]}
