"""The mail worker: takes jobs from the queue, unless it is paused, and writes down what it sent."""

import os
import signal
import time

from kit import Problem, need, redis

need("REDIS_PASSWORD")
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    try:
        paused = redis("EXISTS", "bull:mail:meta-paused") == "1"
        job = "" if paused else redis("LMOVE", "bull:mail:wait", "bull:mail:active", "LEFT", "RIGHT")
        if job:
            with open("/srv/outbox/sent", "a") as sent:
                sent.write(f"{job}\n")
            redis("LREM", "bull:mail:active", "1", job)
            continue
    except Problem:
        pass
    time.sleep(0.2)
