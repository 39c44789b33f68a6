"""masstock's API. Its database is elsewhere; here are a queue and the frontend that was built for this code."""

import pathlib

from kit import equal, need, redis, serve, unseal

VERSION = "1.5.0"
FRONTEND = pathlib.Path("/srv/frontend/version")

need("REDIS_PASSWORD", "ENCRYPTION_KEY")
serve(VERSION, {
    "redis": lambda: equal(redis("PING"), "PONG", "Redis' answer"),
    "settings": lambda: equal(unseal(redis("GET", "settings:sealed")), "canary", "the settings"),
    "frontend": lambda: equal(FRONTEND.read_text(), VERSION, "the frontend"),
})
