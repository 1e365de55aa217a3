"""The next version of the shop, which knows a task that the one before does not."""

import os

from qclient import App

app = App("shop", broker=os.environ["SHOP_BROKER"])
app.conf.task_default_queue = os.environ["SHOP_QUEUE"]


@app.task(name="shop.later")
def later(number: int) -> int:
    return number + 1
