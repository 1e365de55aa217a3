"""An application with exchanges: what is broadcast, and a queue that is bound."""

import os
from pathlib import Path

from qclient import App, Broadcast, Exchange, Queue

app = App("news", broker=os.environ["SHOP_BROKER"])
NAME = os.environ["SHOP_QUEUE"]
EVENTS = Exchange(f"{NAME}-events", "topic")
app.conf.task_default_queue = NAME
app.conf.task_queues = [Broadcast(f"{NAME}-news"), Queue(NAME, EVENTS, "order.#")]


@app.task(bind=True)
def heard(self, what):
    request = self.request
    words = what, os.getppid(), request.exchange, request.routing_key
    with Path(os.environ["SHOP_MARKS"]).open("a", encoding="utf-8") as marks:
        marks.write(" ".join(map(str, ("heard", *words))) + "\n")
