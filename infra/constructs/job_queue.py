"""The queue of doorbells: delivered until taken, parked after a few vain tries, and alarmed."""

from datetime import timedelta

from aws_cdk import Duration
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from infra.constructs.alarms import Alarms
from infra.constructs.platform_function import PlatformFunction

_LONGEST_VISIBILITY = timedelta(hours=12)
_MOST_WITHOUT_A_WINDOW = 10


class JobQueue(Construct):
    """A queue and its dead-letter queue; `deliver_to` connects the one consumer.

    A message that a consumer works on is invisible, for at least six times the consumer's timeout
    (AWS's rule for queues that feed functions). AWS refuses what breaks the rules that are checked
    here, emulators accept it.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        consumer_timeout: timedelta,
        max_deliveries: int,
        alarms: Alarms,
    ) -> None:
        super().__init__(scope, id)
        self._visibility = consumer_timeout * 6
        if self._visibility > _LONGEST_VISIBILITY:
            raise ValueError(f"SQS hides a message for 12 h at most, not {self._visibility}")
        self.dead_letter_queue = sqs.Queue(
            self,
            "DeadLetters",
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=Duration.days(14),
        )
        self.queue = sqs.Queue(
            self,
            "Queue",
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            visibility_timeout=Duration.seconds(self._visibility.total_seconds()),
            retention_period=Duration.days(4),
            dead_letter_queue=sqs.DeadLetterQueue(
                queue=self.dead_letter_queue, max_receive_count=max_deliveries
            ),
        )
        alarms.watch(
            "DeadLetters",
            self.dead_letter_queue.metric_approximate_number_of_messages_visible(
                statistic="Maximum"
            ),
            at_least=1,
            minutes=1,
            meaning="A doorbell could not be handled; `jobctl admin dead-letters list` shows it.",
        )
        alarms.watch(
            "OldestDoorbell",
            self.queue.metric_approximate_age_of_oldest_message(statistic="Maximum"),
            at_least=timedelta(hours=1).total_seconds(),
            meaning="Doorbells wait for over an hour: too few workers, or none that succeed.",
        )

    def deliver_to(
        self,
        consumer: PlatformFunction,
        *,
        timeout: timedelta,
        max_concurrency: int,
        batch_size: int,
    ) -> None:
        if timeout * 6 > self._visibility:
            raise ValueError(
                f"A consumer that may take {timeout} needs a visibility of six times that"
            )
        if not 1 <= batch_size <= _MOST_WITHOUT_A_WINDOW:
            raise ValueError(
                f"Without a batching window a batch has 1 to 10 messages, not {batch_size}"
            )
        if not 2 <= max_concurrency <= 1000:
            raise ValueError(
                f"SQS limits a mapping's concurrency to 2 to 1000, not {max_concurrency}"
            )
        self.queue.grant_consume_messages(consumer)
        lambda_.EventSourceMapping(
            self,
            "Delivery",
            target=consumer,
            event_source_arn=self.queue.queue_arn,
            batch_size=batch_size,
            report_batch_item_failures=True,
            max_concurrency=max_concurrency,
        )
