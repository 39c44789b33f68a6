"""A queue with mails to be sent, and settings that only ENCRYPTION_KEY opens."""

from kit import redis, seal

redis("SET", "settings:sealed", seal("canary"))
redis("SET", "bull:mail:meta-paused", "1")
for n in range(1, 6):
    redis("RPUSH", "bull:mail:wait", f"mail-{n}")
