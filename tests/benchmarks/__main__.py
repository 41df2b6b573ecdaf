"""`python -m tests.benchmarks [NAME ...] [--rows N] [--rounds N]`: measure, and say what holds."""

import os
import sys


def main() -> int:
    _bare_environ()
    from tests.benchmarks import cli

    return cli.main()


def _bare_environ() -> None:
    """What a developer's shell says about AWS must not reach a measurement."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "POWERTOOLS_", "PG")):
            del os.environ[name]
    # Read when the functions' modules are imported.
    os.environ.update(
        POWERTOOLS_SERVICE_NAME="benchmarks",
        POWERTOOLS_METRICS_NAMESPACE="JobPlatform",
        POWERTOOLS_TRACE_DISABLED="true",
    )


if __name__ == "__main__":
    sys.exit(main())
