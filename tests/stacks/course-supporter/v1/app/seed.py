"""Courses, and a token that only ENCRYPTION_KEY opens."""

from kit import seal, sql

sql(f"""
insert into courses (title, embedding) select 'course ' || n, cube(array[n + 10, n]) from generate_series(1, 300) n;
insert into courses (title, embedding) values ('canary', cube(array[1, 1]));
insert into tokens (id, sealed) values (1, '{seal("canary")}');
""")
