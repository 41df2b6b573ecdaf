"""Alarms that reach a person: one topic, and one way to watch a metric."""

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from infra.targets import Target


class Alarms(Construct):
    """Makes nothing on a target without alarms, so that nobody who watches something need ask."""

    def __init__(self, scope: Construct, id: str, *, target: Target, email: str | None) -> None:
        super().__init__(scope, id)
        self.topic: sns.Topic | None = None
        if target.alarms:
            self.topic = sns.Topic(self, "Topic", enforce_ssl=True)
            if email is not None:
                self.topic.add_subscription(subscriptions.EmailSubscription(email))

    def watch(
        self,
        id: str,
        metric: cloudwatch.Metric,
        *,
        meaning: str,
        at_least: float | None = None,
        below: float | None = None,
        minutes: int = 5,
        no_data_is_bad: bool = False,
    ) -> None:
        """An alarm when the metric over `minutes` is `at_least`, or `below`, a value."""
        if self.topic is None:
            return
        threshold = at_least if at_least is not None else below
        if threshold is None:
            raise ValueError(f"The alarm {id} needs at_least or below")
        alarm = cloudwatch.Alarm(
            self,
            id,
            metric=metric.with_(period=Duration.minutes(minutes)),
            alarm_description=meaning,
            comparison_operator=(
                cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
                if at_least is not None
                else cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD
            ),
            threshold=threshold,
            evaluation_periods=1,
            treat_missing_data=(
                cloudwatch.TreatMissingData.BREACHING
                if no_data_is_bad
                else cloudwatch.TreatMissingData.NOT_BREACHING
            ),
        )
        alarm.add_alarm_action(actions.SnsAction(self.topic))
        alarm.add_ok_action(actions.SnsAction(self.topic))
