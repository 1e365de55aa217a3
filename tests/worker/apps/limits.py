"""Tasks with time limits of their own, beside those of the shop. For pools that honour them."""

import os
import time

from shop import app, mark

from qclient import SoftTimeLimitExceeded

__all__ = ["app"]


@app.task(soft_time_limit=0.3)
def soft(seconds):
    try:
        time.sleep(seconds)  # tidy: it is the task's work
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "in time"


@app.task(time_limit=0.3)
def hard():
    mark("hard", os.getpid())
    time.sleep(60)  # tidy: it is the task's work
