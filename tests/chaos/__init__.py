"""Breaks a deployed platform on purpose, and checks that it keeps its promises all the same.

`python -m tests.chaos` (`make chaos`) starts the embedded target, submits jobs of several clients,
and meanwhile kills, stops, delays and confuses everything the platform stands on. In the end every
promise of docs/explanation/promises.md is checked against the database, the bucket and the API.
"""
