"""Tasks that declare limits of their own."""

import os

from shop import app

__all__ = ["app"]

ALONE = None if os.environ.get("RATES_ALONE") == "none" else 1


@app.task(rate_limit="5/s")
def slow(number):
    return number


@app.task(concurrency_limit=ALONE)
def alone(number):
    return number
