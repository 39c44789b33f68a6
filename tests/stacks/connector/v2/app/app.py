"""The connector: answers for the main application, which knows it by a shared secret."""

import hmac
import os
import urllib.request

from kit import equal, key, need, redis, serve, unseal

VERSION = "0.3.0"

need("ENCRYPTION_KEY", "HMAC_SHARED_SECRET")
key()


def main_app_reachable():
    signature = hmac.new(os.environ["HMAC_SHARED_SECRET"].encode(), b"ping", "sha256").hexdigest()
    request = urllib.request.Request(os.environ["MAIN_APP_URL"], headers={"X-Signature": signature})
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


checks = {
    "redis": lambda: equal(redis("PING"), "PONG", "Redis' answer"),
    "tokens": lambda: equal(unseal(redis("GET", "token:canary")), "canary", "the stored token"),
}
serve(VERSION, checks, lambda: {"main_app_reachable": main_app_reachable()})
