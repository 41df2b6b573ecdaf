"""`make bench`: the platform's speed, memory and cost in proportion to what one would else use.

Each module named in `registry.MODULES` holds benchmarks; see docs/explanation/performance.md.
"""
