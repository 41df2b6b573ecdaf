"""`make bench`: what the platform's speed, memory and cost are in proportion to what people would use otherwise.

Each module named in `registry.MODULES` holds benchmarks; see docs/explanation/performance.md.
"""
