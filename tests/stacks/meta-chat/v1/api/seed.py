"""Documents with their files and embeddings, messages, and a cache."""

import hashlib
import os
import pathlib

from kit import redis, seal, sql

os.environ["ENCRYPTION_KEY"] = pathlib.Path("/run/secrets/encryption_key").read_text().strip()
for n, name in enumerate(["canary.txt", "zweites Dokument.txt", "third.txt"]):
    text = f"document {n}\n" * 2000
    pathlib.Path("/srv/storage", name).write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    place = f"cube(array[0.1 + {n}, 0.2, 0.3])"
    sql(f"insert into documents (name, sha256, embedding) values ('{name}', '{digest}', {place})")
sql(f"insert into messages (id, sealed) values (1, '{seal('canary')}')")
sql("insert into messages (id, sealed) select n, md5(n::text) from generate_series(2, 800) n")
redis("SET", "canary", "canary")
for n in range(40):
    redis("SET", f"answer:{n}", f"cached {n}")
