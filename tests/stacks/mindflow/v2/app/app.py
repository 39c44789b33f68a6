"""mindflow: notes, and what is sealed with the key of the environment."""

from kit import equal, need, schema, serve, sql, unseal

VERSION, REVISION = "1.1.0", "0002"
NOTE = "select summary from notes where title = 'canary'"

need("DATABASE_URL", "ENCRYPTION_KEY", "JWT_SECRET")
serve(VERSION, {
    "db": lambda: sql("select 1"),
    "schema": lambda: schema(REVISION),
    "notes": lambda: equal(sql(NOTE), "a note", "the note"),
    "vault": lambda: equal(unseal(sql("select sealed from vault where id = 1")), "canary", "the vault"),
})
