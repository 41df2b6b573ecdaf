"""`make bench`: the platform's speed, memory and cost in proportion to what one would else use.

Each module named in `registry.MODULES` holds benchmarks; see docs/explanation/performance.md.
"""

import os

# Powertools reads them when it is imported.
os.environ.setdefault("POWERTOOLS_METRICS_NAMESPACE", "JobPlatform")
os.environ.setdefault("POWERTOOLS_SERVICE_NAME", "benchmarks")
