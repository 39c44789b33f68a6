# shellcheck shell=bash disable=SC2154
# Sourced by ../engine.sh: a Postgres on two days.

bin=/usr/lib/postgresql/15/bin

as_postgres() {
    if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"; else "$@"; fi
}
# sql DATABASE ARGUMENTS...
sql() {
    local database=$1
    shift
    PGOPTIONS='-c client_min_messages=warning' psql -XqAt -v ON_ERROR_STOP=1 -h "$work/pg/run" -p "$port" -U postgres -d "$database" "$@"
}

start_postgres() {
    mkdir -p "$work/pg/run"
    [ "$(id -u)" != 0 ] || chown -R postgres: "$work/pg"
    as_postgres "$bin/initdb" -A trust -U postgres -E UTF8 --locale=C.UTF-8 -N -D "$work/pg/data" >/dev/null
    as_postgres "$bin/pg_ctl" -w -s -D "$work/pg/data" -l "$work/pg/log" \
        -o "-F -p $port -c listen_addresses=127.0.0.1 -k $work/pg/run -c max_wal_size=8GB -c shared_buffers=512MB -c autovacuum=off" start >/dev/null
}
stop_postgres() {
    [ ! -e "$work/pg/data/postmaster.pid" ] || as_postgres "$bin/pg_ctl" -s -D "$work/pg/data" -m "$1" stop
    rm -rf "$work/pg"
}

# fill_postgres DATABASE: rows of about 250 bytes: customers, orders and events; two large tables and some small ones.
fill_postgres() {
    local rows=$((postgres_mib * 2600))
    sql "$1" <<SQL
create table orders (id bigint primary key, customer int not null, at timestamptz not null, total numeric(12,2) not null,
    state text not null, note text not null, items jsonb not null);
create table events (id bigint primary key, at timestamptz not null, kind text not null, body text not null, ip inet);
create table customers (id int primary key, name text not null, mail text not null, since date not null);
create function words(seed bigint, n int) returns text language sql immutable as \$\$
    select string_agg((array['delivery','invoice','customer','address','please','before','noon','call','ring','left','door',
    'paid','refund','order','express','gift','wrap','blue','green','large','small','return','monday','friday','urgent','thanks'])
    [1 + ((seed * 7919 + i * 104729 + (seed % 1009) * i) % 26)::int], ' ') from generate_series(1, n) i \$\$;
insert into orders select n, n * 7919 % 99991, timestamptz '2026-01-01' + n * interval '3 s', (n * 31 % 99991) / 100.0,
    (array['new','paid','sent','done'])[1 + n % 4], words(n, 4 + (n % 9)::int),
    jsonb_build_object('sku', md5((n % 50000)::text), 'count', n % 9, 'price', (n * 17 % 10007) / 100.0)
    from generate_series(1::bigint, $rows * 55 / 100) n;
insert into events select n, timestamptz '2026-01-01' + n * interval '2 s', (array['login','view','cart','buy'])[1 + n % 4],
    words(n * 3, 3 + (n % 7)::int) || ' ' || md5((n / 4)::text), ('10.' || n % 250 || '.' || n / 250 % 250 || '.7')::inet
    from generate_series(1::bigint, $rows * 65 / 100) n;
insert into customers select n, 'Customer ' || n, md5(n::text) || '@example.org', date '2020-01-01' + n % 2000 from generate_series(1, 99991) n;
create index on orders (customer);
SQL
    sql "$1" -c 'vacuum analyze' -c checkpoint
}

# The second day: new rows, some recent orders get another state, and a few old ones anywhere.
second_day() {
    sql shop <<'SQL'
insert into orders select n + (select max(id) from orders), n * 104729 % 99991, timestamptz '2026-11-01' + n * interval '3 s', (n * 37 % 99991) / 100.0,
    'new', words(n * 11, 7), jsonb_build_object('sku', md5((n % 40009)::text), 'count', n % 7)
    from generate_series(1::bigint, (select count(*) * 6 / 1000 from orders)) n;
insert into events select n + (select max(id) from events), timestamptz '2026-11-01' + n * interval '2 s', 'view', words(n * 13, 6) || md5(n::text), '10.0.0.9'
    from generate_series(1::bigint, (select count(*) * 6 / 1000 from events)) n;
update orders set state = 'done' where id > (select max(id) * 985 / 1000 from orders) and id % 2 = 0;
update orders set note = note || ' changed' where id % 5003 = 7;
update customers set since = since + 1 where id % 997 = 3;
checkpoint;
SQL
}

bench_postgres() {
    need_root_or_have "$bin/postgres=postgresql-15"
    local round tool dump port
    port=$(shuf -i 30000-34999 -n 1)
    printf 'making the database ...\n'
    start_postgres
    sql postgres -c 'create database first_day'
    fill_postgres first_day
    dump="\"$bin/pg_dump\" -Fc -Z0 -h \"$work/pg/run\" -p $port -U postgres shop"
    printf '[[source]]\nkind = "postgres"\nurl = "postgres://postgres@/shop?host=%s&port=%s"\n' "$work/pg/run" "$port" >"$work/source.toml"
    for round in $(seq "$runs"); do
        # A copy of the same pages, equal in every round.
        sql postgres -c 'drop database if exists shop' -c 'create database shop template first_day strategy file_copy' -c checkpoint
        new_repositories
        # What is read the first time costs more, once: the server notes on its pages who may see a row.
        bash -c "$dump" | wc -c >"$work/size"
        for tool in $(turns "$round"); do measure first "$tool" "$(capture_stream "$tool" "$dump")"; done
        second_day
        bash -c "$dump" >/dev/null
        for tool in $(turns "$round"); do measure second "$tool" "$(capture_stream "$tool" "$dump")"; done
        [ "$round" != "$runs" ] || digest_postgres shop >"$work/live.digest"
        for tool in $(turns "$round"); do
            drop_restored
            measure restore "$tool" "$(restore_stream "$tool" postgres)" "$work/repository/$tool"
            [ "$round" != "$runs" ] || same_postgres "$tool"
            drop_restored
        done
    done
    printf 'database of %s, dump of %s MiB\n' "$(sql postgres -c "select pg_size_pretty(pg_database_size('first_day'))")" \
        "$(($(cat "$work/size") >> 20))"
    rm -rf "$work/repository"
    stop_postgres fast
    table Postgres 'first day:first' 'second day:second' 'restore to a file:restore'
}

# digest_postgres DATABASE: its definitions, and of each table how many rows there are and sums over the hashes of all of them.
# A dump is not compared itself: it bears the time when it was made, and rows may lie in another order once they were loaded.
digest_postgres() {
    local table tables
    # The key of \restrict is another one in every dump.
    "$bin/pg_dump" -s -h "$work/pg/run" -p "$port" -U postgres "$1" | grep -vE '^\\(un)?restrict '
    tables=$(sql "$1" -c "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname !~ '^(pg_|information_schema)' order by 1")
    for table in $tables; do
        sql "$1" -c "select '$table', count(*), sum(('x' || left(h, 16))::bit(64)::bigint::numeric), sum(('x' || right(h, 16))::bit(64)::bigint::numeric)
            from (select md5(t::text) as h from $table as t offset 0) as hashes"
    done
}

# same_postgres TOOL: the server loads what it restored, and has what was captured. Lifeboat loads it by itself as well.
same_postgres() {
    local part
    sql postgres -c 'create database again template template0'
    # Of a database that was dumped in parts, in the order in which they are loaded.
    for part in dump shop.dump shop.pre-data.dump 'shop.data-*.dump' shop.post-data.dump; do
        find "$work/restored" -type f -name "$part" -print0 | sort -z |
            xargs -0 -r -n 1 "$bin/pg_restore" -j 2 --exit-on-error -h "$work/pg/run" -p "$port" -U postgres -d again
    done
    same_digest "$1"
    if [ "$1" = lifeboat ]; then
        bash -c "$boat restore latest --only postgres --database-as again --yes" >"$work/out" 2>&1 || die "$(cat "$work/out")"
        same_digest "$1"
    fi
}
same_digest() {
    digest_postgres again >"$work/again.digest"
    diff "$work/live.digest" "$work/again.digest" >&2 || die "$1 restored another database"
    sql postgres -c 'drop database again'
}
