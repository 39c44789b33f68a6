"""Notes, among them the canary, and a sealed row."""

from kit import seal, sql

sql(f"""
insert into notes (title, body) select 'note ' || n, md5(n::text) from generate_series(1, 500) n;
insert into notes (title, body) values ('canary', 'a note');
insert into vault (id, sealed) values (1, '{seal("canary")}');
""")
