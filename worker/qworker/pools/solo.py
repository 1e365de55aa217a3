"""One runner in the main thread of the process that loaded the application. No fork at all.

For what does not survive a fork (CUDA, some macOS frameworks), and for a debugger.
"""

from qworker.runner import Runner


def run(runners: list[Runner]) -> None:
    """The only runner runs here until it is told to stop."""
    (runner,) = runners
    runner.run()
