"""What the five small applications share: GET /health, Postgres, Redis, and values sealed with ENCRYPTION_KEY.

The servers' own clients are run for each question, with passwords in their environment."""

import hashlib
import hmac
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Problem(Exception):
    """Why a check is not passed, in one line."""


def need(*names):
    """The application does not start without these variables."""
    for name in names:
        if not os.environ.get(name):
            sys.exit(f"{name} is not set")


def run(argv, environment, text=None):
    done = subprocess.run(argv, env={**os.environ, **environment}, input=text, capture_output=True, text=True, timeout=10)
    if done.returncode != 0:
        raise Problem((done.stderr.strip().splitlines() or ["no answer"])[-1])
    return done.stdout.strip()


def sql(text):
    """Rows of DATABASE_URL's database, one a line, columns with `|` between them."""
    url = urlsplit(os.environ["DATABASE_URL"])
    environment = {
        "PGHOST": url.hostname,
        "PGPORT": str(url.port or 5432),
        "PGUSER": unquote(url.username),
        "PGPASSWORD": unquote(url.password),
        "PGDATABASE": url.path.lstrip("/"),
        "PGCONNECT_TIMEOUT": "10",
    }
    return run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-f", "-"], environment, text)


def redis(*command):
    """An answer of the server at REDIS_HOST."""
    argv = ["redis-cli", "-h", os.environ["REDIS_HOST"], "-e", *command]
    return run(argv, {"REDISCLI_AUTH": os.environ["REDIS_PASSWORD"]} if os.environ.get("REDIS_PASSWORD") else {})


def key():
    text = os.environ["ENCRYPTION_KEY"]
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise Problem("ENCRYPTION_KEY is not 64 hex digits")
    return bytes.fromhex(text)


def seal(text):
    """Encrypted and authenticated with ENCRYPTION_KEY."""
    nonce = secrets.token_bytes(16)
    body = mix(nonce, text.encode())
    return (nonce + body + hmac.digest(key(), nonce + body, "sha256")).hex()


def unseal(sealed):
    raw = bytes.fromhex(sealed)
    nonce, body, tag = raw[:16], raw[16:-32], raw[-32:]
    if not hmac.compare_digest(tag, hmac.digest(key(), nonce + body, "sha256")):
        raise Problem("ENCRYPTION_KEY does not open what is stored")
    return mix(nonce, body).decode()


def mix(nonce, data):
    blocks = (hmac.digest(key(), nonce + n.to_bytes(4, "big"), "sha256") for n in range(len(data) // 32 + 1))
    return bytes(a ^ b for a, b in zip(data, b"".join(blocks)))


def equal(found, wanted, what):
    if found != wanted:
        raise Problem(f"{what} is {found!r}, not {wanted!r}")


def schema(wanted):
    """The database is at the migration that this code was written for."""
    equal(sql("select version_num from alembic_version"), wanted, "the schema")


def serve(version, checks, more=None):
    """Answers GET /health: 200 when every check passes, else 503. `more` adds to the answer."""

    def health():
        found = {}
        for name, check in checks.items():
            try:
                check()
                found[name] = "ok"
            except (Problem, subprocess.TimeoutExpired, KeyError, ValueError, OSError) as e:
                found[name] = f"{type(e).__name__}: {e}"
        ok = all(text == "ok" for text in found.values())
        answer = {"status": "ok" if ok else "degraded", "version": version, "checks": found}
        return (200 if ok else 503), {**answer, **(more() if more else {})}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, answer = health() if self.path.endswith("/health") else (404, {"status": "not found"})
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    # The first process of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
