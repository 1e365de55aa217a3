"""Tasks with time limits of their own, beside those of the shop. For pools that honour them."""

import os
import time

from qclient import SoftTimeLimitExceeded
from shop import app, mark

__all__ = ["app"]


@app.task(soft_time_limit=0.3)
def soft(seconds):
    try:
        time.sleep(seconds)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "in time"


@app.task(time_limit=0.3)
def hard():
    mark("hard", os.getpid())
    time.sleep(60)
