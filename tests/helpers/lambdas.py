"""What the functions keep between invocations, and how to make them start anew."""

from functions.admin import handler as admin
from functions.api import resources
from functions.dispatcher import handler as dispatcher
from functions.purge import handler as purge
from functions.worker import handler as worker


def start_anew() -> None:
    """The next invocation is the first of an execution environment: it reads its settings again."""
    if resources.get.cache_info().currsize:
        resources.get().engine.dispose()
    if admin._operator.cache_info().currsize:
        admin._operator().engine.dispose()
    if dispatcher._resources.cache_info().currsize:
        dispatcher._resources().engine.dispose()
    if purge._resources.cache_info().currsize:
        purge._resources()[0].dispose()
    if worker._worker.cache_info().currsize:
        worker._worker().engine.dispose()
    for cache in (
        resources.get,
        resources.cursor_secret,
        admin._operator,
        dispatcher._resources,
        purge._resources,
        worker._worker,
    ):
        cache.cache_clear()
    resources._callers.clear()
