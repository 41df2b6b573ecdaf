"""Hopeless

Refuses whatever it is asked, when it is too late for the API to say so.
"""

from typing import Any, NoReturn

from jobplatform.templating import Params, Template


def query(params: Any) -> NoReturn:
    raise ValueError("there are no such rows")


template = Template(params=Params, query=query)
