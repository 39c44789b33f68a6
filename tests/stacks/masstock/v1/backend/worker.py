"""The mail worker: takes jobs from the queue, unless it is paused, and writes down what it sent."""

import os
import signal
import time

from kit import Problem, need, redis

# One step in the server, as real queues do it: a job that is put in while the queue is paused stays there.
TAKE = "return redis.call('EXISTS', KEYS[1]) == 0 and redis.call('LMOVE', KEYS[2], KEYS[3], 'LEFT', 'RIGHT')"
QUEUE = ["bull:mail:meta-paused", "bull:mail:wait", "bull:mail:active"]

need("REDIS_PASSWORD")
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    try:
        job = redis("EVAL", TAKE, str(len(QUEUE)), *QUEUE)
        if job:
            with open("/srv/outbox/sent", "a") as sent:
                sent.write(f"{job}\n")
            redis("LREM", "bull:mail:active", "1", job)
            continue
    except Problem:
        pass
    time.sleep(0.2)
