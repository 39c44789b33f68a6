"""meta-chat's API: documents with embeddings, their files, a cache, and a broker."""

import hashlib
import os
import pathlib
import socket

from kit import equal, redis, schema, serve, sql, unseal

VERSION, REVISION = "2.0.0", "0001"
NEAREST = "select name from documents order by embedding <-> cube(array[0.1, 0.2, 0.3]) limit 1"

os.environ["ENCRYPTION_KEY"] = pathlib.Path("/run/secrets/encryption_key").read_text().strip()


def documents():
    for row in sql("select name, sha256 from documents order by name").splitlines():
        name, digest = row.split("|")
        equal(hashlib.sha256(pathlib.Path("/srv/storage", name).read_bytes()).hexdigest(), digest, name)


serve(VERSION, {
    "db": lambda: sql("select 1"),
    "schema": lambda: schema(REVISION),
    "embeddings": lambda: equal(sql(NEAREST), "canary.txt", "the nearest document"),
    "documents": documents,
    "messages": lambda: equal(unseal(sql("select sealed from messages where id = 1")), "canary", "the message"),
    "redis": lambda: equal(redis("GET", "canary"), "canary", "the cached value"),
    "rabbitmq": lambda: socket.create_connection((os.environ["RABBITMQ_HOST"], 5672), 2).close(),
})
