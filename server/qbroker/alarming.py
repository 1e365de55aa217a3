"""Alarms about dead letters, told to people: in the journal once as they begin and end, in /health
while they last.
"""

import logging
from dataclasses import dataclass

from qbroker.core.broker import Broker

logger = logging.getLogger("qbroker.alarms")


@dataclass(frozen=True, slots=True)
class Alarming:
    """Of one broker. Called from its loop."""

    core: Broker

    def tell(self) -> None:
        """The journal has what began or ended since the last call."""
        for alarm, begins in self.core.take_news():
            if begins:
                logger.warning(
                    "too much in %s: %s; look with: qbroker dead list --queue %s",
                    *(alarm.queue, alarm.why, alarm.queue),
                )
            else:
                logger.info("the alarm about %s is over (it was: %s)", alarm.queue, alarm.why)

    def report(self) -> list[dict[str, object]]:
        """A row for each that has begun and is not over, the first that began first."""
        return [alarm._asdict() for alarm in self.core.alarms()]
