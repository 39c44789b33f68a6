#!/usr/bin/env bash
# What a drill and a restore in place of a large database cost, beside PostgreSQL's own tools, in one run:
#   bare      pg_restore -j2 of the same dump into an equal server, and the same fingerprints, two tables at a time
#   drill     lifeboat drill of that source: seconds, peak memory of Lifeboat itself, and the ratio to bare
#   in place  lifeboat restore --in-place of it: the whole, and the downtime
#
#   scripts/bench/drill.sh [MIB]                       default: a database of about 1,536 MiB
#
# LIFEBOAT=FILE      the binary to measure (default: the release build of this folder, made if need be)
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname "$0")/../lib.sh"

need_packages demo
need_root_or_have /usr/bin/time=time
if [ -z "${LIFEBOAT-}" ]; then
    need_rust
    (cd "$LIFEBOAT_SRC" && cargo build --release --locked --quiet)
    LIFEBOAT=$CARGO_TARGET_DIR/release/lifeboat
fi
mib=${1:-1536}
bin=/usr/lib/postgresql/15/bin

work=$(mktemp -d /var/tmp/lifeboat-bench.XXXXXX)
chmod 711 "$work"
finish() {
    for cluster in "$work"/*/data; do
        [ ! -e "$cluster/postmaster.pid" ] || as_postgres "$bin/pg_ctl" -s -D "$cluster" -m immediate stop || true
    done
    rm -rf "$work"
}
trap finish EXIT

as_postgres() {
    if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"; else "$@"; fi
}

# start_postgres NAME PORT OPTIONS: a cluster that trusts this machine, as fast as a throw-away one may be where asked.
start_postgres() {
    mkdir -p "$work/$1/run"
    [ "$(id -u)" != 0 ] || chown -R postgres: "$work/$1"
    as_postgres "$bin/initdb" -A trust -U postgres -E UTF8 --locale=C.UTF-8 -N -D "$work/$1/data" >/dev/null
    as_postgres "$bin/pg_ctl" -w -s -D "$work/$1/data" -l "$work/$1/log" \
        -o "-p $2 -c listen_addresses=127.0.0.1 -k $work/$1/run $3" start >/dev/null
}

sql() { psql -XqAt -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$1" -U postgres -d "$2" "${@:3}"; }

live=$(shuf -i 30000-34999 -n 1)
bare=$(shuf -i 35000-39999 -n 1)
start_postgres live "$live" '-F -c max_wal_size=4GB'
# Rows of about 330 bytes with indexes: seven tables, the largest half of all.
rows=$((mib * 3350))
sql "$live" postgres -c 'create database shop'
for table in 1 2 3 4 5 6 7; do
    share=$((table == 1 ? rows / 2 : rows / 12))
    sql "$live" shop <<SQL
create table t$table (id bigint primary key, customer int not null, at timestamptz not null, total numeric(12,2) not null,
    note text not null, items jsonb not null);
insert into t$table select n, n % 99991, timestamptz '2026-01-01' + n * interval '3 s', (n % 99991) / 100.0,
    md5(n::text) || md5((n * 3)::text) || md5((n * 7)::text), jsonb_build_object('sku', md5((n % 5000)::text), 'count', n % 9)
    from generate_series(1, $share) n;
create index on t$table (customer, at);
create index on t$table (at);
SQL
done
sql "$live" shop -c 'vacuum analyze' -c 'checkpoint'
printf 'database of %s\n' "$(sql "$live" shop -c "select pg_size_pretty(pg_database_size('shop'))")"

lifeboat() { "$LIFEBOAT" --config-dir "$work/config" --state-dir "$work/state" "$@"; }
mkdir -p "$work/app"
lifeboat keys new >/dev/null
lifeboat init "$work/app" --name shop --repository "$work/repository" >/dev/null 2>&1
cat >>"$work/config/policies/shop.toml" <<POLICY

[[source]]
kind = "postgres"
url = "postgres://postgres@127.0.0.1:$live/shop"
fingerprint = "content"
jobs = 2

[drill]
postgres = "local"
POLICY
lifeboat snapshot >/dev/null 2>&1

# What the drill has to do at least, with the tools alone.
dump=$work/shop.dump
"$bin/pg_dump" -Fc -Z0 -h 127.0.0.1 -p "$live" -U postgres -d shop -f "$dump"

# fingerprint TABLE: the query by which a capture and a drill read a table's content (src/sources/postgres/content.rs).
fingerprint() {
    local column values='' null
    null="'\\x$(printf '00%.0s' $(seq 32))'::bytea"
    for column in at customer id items note total; do
        values="$values || CASE num_nulls(t.$column) WHEN 1 THEN $null ELSE sha256(textsend(format('%s', t.$column))) END"
    done
    printf "SELECT count(*), sum(('x' || substr(h, 1, 16))::bit(64)::bigint::numeric), sum(('x' || substr(h, 17, 16))::bit(64)::bigint::numeric) FROM (SELECT encode(sha256(%s), 'hex') AS h FROM ONLY %s AS t OFFSET 0) AS r\n" \
        "${values# || }" "$1"
}

bare_run() {
    start_postgres "$1" "$bare" '-F -c full_page_writes=off -c max_wal_size=8GB -c autovacuum=off -c maintenance_work_mem=64MB'
    sql "$bare" postgres -c 'create database shop'
    "$bin/pg_restore" -j2 --exit-on-error -h 127.0.0.1 -p "$bare" -U postgres -d shop "$dump"
    for table in 1 2 3 4 5 6 7; do fingerprint "t$table"; done |
        xargs -d '\n' -P 2 -n 1 psql -XqAt -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$bare" -U postgres -d shop -c >/dev/null
    as_postgres "$bin/pg_ctl" -s -D "$work/$1/data" -m immediate stop
    rm -rf "${work:?}/$1"
}

drill_run() {
    /usr/bin/time -f '%M' -o "$work/peak" "$LIFEBOAT" --config-dir "$work/config" --state-dir "$work/state" --json \
        drill >"$work/drill.json" 2>"$work/err" || { cat "$work/err" "$work/drill.json" >&2; die 'the drill failed'; }
}

# seconds COMMAND...: how long it takes.
seconds() {
    local begun
    begun=$(now_ms)
    "$@"
    awk -v ms=$(($(now_ms) - begun)) 'BEGIN { printf "%.2f", ms / 1000 }'
}

printf '%-10s %9s %9s %8s\n' run bare drill ratio
for round in 1 2; do
    b=$(seconds bare_run "bare$round")
    d=$(seconds drill_run)
    printf '%-10s %8s s %7s s %8s\n' "$round" "$b" "$d" "$(awk -v b="$b" -v d="$d" 'BEGIN { printf "%.2f", d / b }')"
done
printf 'peak memory of lifeboat in the last drill: %s MiB\n' "$(($(tail -n 1 "$work/peak") / 1024))"
jq -r '.sources[] | select(.kind == "postgres") | .steps[] | "  \(.name): \(.seconds * 100 | round / 100) s"' "$work/drill.json"

lifeboat --json restore latest --in-place --only postgres --yes >"$work/place.json" 2>"$work/err" || {
    cat "$work/err" "$work/place.json" >&2
    die 'the restore in place failed'
}
jq -r '"in place: \(.seconds * 100 | round / 100) s in all; services would stand for " +
    ([.steps[] | select(.name | test("^(stop|look|switch|start|confirm|health)")) | .seconds] | add * 100 | round / 100 | tostring) + " s"' \
    "$work/place.json"
