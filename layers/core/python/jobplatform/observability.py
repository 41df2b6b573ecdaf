"""Logs and metrics by Powertools, one object of each a process.

Traces come from Lambda itself (active tracing); the X-Ray SDK would cost every cold start.
"""

from aws_lambda_powertools import Logger, Metrics

logger = Logger()
metrics = Metrics()
