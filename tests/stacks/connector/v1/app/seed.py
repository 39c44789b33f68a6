"""What the connector has stored: a token that only its ENCRYPTION_KEY opens, and sessions."""

from kit import redis, seal

redis("HSET", "tokens", "canary", seal("canary"))
for n in range(50):
    redis("SET", f"session:{n}", f"user-{n}")
