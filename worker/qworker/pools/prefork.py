"""A process for each runner, forked from one that has the application loaded already.

Tasks run in the main thread, where signals arrive: a soft limit raises inside the task, a hard
one kills the process and nothing else. What one task does to its process, no other task sees.
"""

from qworker.runner import Runner


def run(runners: list[Runner]) -> None:
    """The only runner runs here, in the main thread, until it is told to stop."""
    (runner,) = runners
    runner.run()
