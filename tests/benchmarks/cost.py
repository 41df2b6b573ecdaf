"""x"""


def run(bench):
    yield from ()
