#!/usr/bin/env bash
# Lifeboat beside restic, borg, rustic, bupstash (whatever of them is found) and the plain pipe tar | zstd | age: files,
# a Postgres and a Redis; first snapshot, unchanged, after a change of about 1 %, restore and deep check. The tools take
# turns within a round, so the ratios of one run count, not the seconds. Every restored tree is compared: bytes, modes,
# owners, times. README.md in this folder says how to install the others.
#
#   scripts/bench/engine.sh [full|small]     full: 2 GiB of files, 1.5 GiB of Postgres, 300 MiB of Redis; small: a minute
#
# LIFEBOAT=FILE    the binary to measure (default: the release build of this folder, made if need be)
# ONLY=LIST        of files, postgres, redis (default: all three)
# TOOLS=LIST       of lifeboat, restic, borg, rustic, bupstash, pipe (default: what is found)
# RUNS=N           rounds; the median counts (default: 3, small: 1)
# FILES_MIB, POSTGRES_MIB, REDIS_MIB    other sizes
# BENCH_DIR=FOLDER where everything lies while it runs (default: a folder below /var/tmp)
# Commands are made as text and run by a shell that has their variables.
# shellcheck disable=SC2016
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname "$0")/../lib.sh"

case ${1:-full} in
full) files_mib=2048 postgres_mib=1536 redis_mib=300 runs=3 ;;
small) files_mib=96 postgres_mib=64 redis_mib=16 runs=1 ;;
*) die "usage: engine.sh [full|small]" ;;
esac
files_mib=${FILES_MIB:-$files_mib} postgres_mib=${POSTGRES_MIB:-$postgres_mib} redis_mib=${REDIS_MIB:-$redis_mib}
runs=${RUNS:-$runs} only=${ONLY:-files postgres redis}
PATH=$LIFEBOAT_CACHE/peers/bin:$PATH
[ -x /usr/bin/time ] || die "GNU time is missing: install the package time"
need_root_or_have /usr/bin/python3.11=python3 age=age zstd=zstd tar=tar
if [ -z "${LIFEBOAT-}" ]; then
    need_rust
    (cd "$LIFEBOAT_SRC" && cargo build --release --locked --quiet)
    LIFEBOAT=$CARGO_TARGET_DIR/release/lifeboat
fi
export LIFEBOAT
taking_part=
for tool in ${TOOLS:-lifeboat bupstash rustic restic borg pipe}; do
    case $tool in
    lifeboat | pipe) taking_part="$taking_part $tool" ;;
    *) if command -v "$tool" >/dev/null; then taking_part="$taking_part $tool"; else printf '%s is not installed: left out\n' "$tool"; fi ;;
    esac
done
workload=$(dirname "$(readlink -f "$0")")/workload.py

work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/lifeboat-bench.XXXXXX")
chmod 711 "$work"
finish() {
    [ ! -e "$work/pg/data/postmaster.pid" ] || as_postgres "$bin/pg_ctl" -s -D "$work/pg/data" -m immediate stop || true
    [ ! -s "$work/redis.pid" ] || kill "$(cat "$work/redis.pid")" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
bin=/usr/lib/postgresql/15/bin
export WORK=$work HOME=$work/home RESTIC_PASSWORD=bench RUSTIC_PASSWORD=bench BORG_PASSPHRASE=bench XDG_CACHE_HOME=$work/cache
export BORG_BASE_DIR=$work/borg-home BUPSTASH_KEY=$work/bupstash.key RESTIC_CACHE_DIR=$work/cache/restic
mkdir -p "$work/home" "$work/times"
age-keygen -o "$work/age.key" 2>/dev/null
AGE=$(age-keygen -y "$work/age.key")
export AGE
! command -v bupstash >/dev/null || bupstash new-key -o "$work/bupstash.key"
as_postgres() {
    if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"; else "$@"; fi
}
boat='"$LIFEBOAT" --config-dir "$WORK/boat/config" --state-dir "$WORK/boat/state" -q'

# new_repository TOOL: an empty one, without a memory of the last.
new_repository() {
    rm -rf "$work/repository/$1" "$work/cache" "$work/borg-home" "$work/home/.cache"
    mkdir -p "$work/repository" "$work/home"
    case $1 in
    lifeboat)
        rm -rf "$work/boat"
        mkdir -p "$work/app"
        "$LIFEBOAT" --config-dir "$work/boat/config" --state-dir "$work/boat/state" -q init "$work/app" --name bench \
            --repository "$work/repository/lifeboat" >"$work/log" 2>&1 || die "$(cat "$work/log")"
        {
            printf '[app]\nname = "bench"\nroot = "%s"\n\n[repository]\nurl = "%s"\nmin_free = "1MiB"\n' "$work/app" "$work/repository/lifeboat"
            printf 'recipients = ["%s"]\n' "$(sed -n 's/^# recipient: //p' "$work/boat/config/identity.txt")"
            for kind in env git compose; do printf '[[source]]\nkind = "%s"\nenabled = false\n' "$kind"; done
            cat "$work/source.toml"
        } >"$work/boat/config/policies/bench.toml"
        ;;
    restic) restic -q -r "$work/repository/restic" init >/dev/null ;;
    rustic) rustic --no-progress -r "$work/repository/rustic" init >/dev/null 2>&1 ;;
    borg) borg init -e repokey-blake2 "$work/repository/borg" 2>/dev/null ;;
    bupstash) bupstash init -r "$work/repository/bupstash" >/dev/null ;;
    pipe) mkdir -p "$work/repository/pipe" ;;
    esac
}

# measure STEP TOOL COMMAND: wall, CPU and peak memory of a shell command, and what it stored.
measure() {
    local step=$1 tool=$2 before after kib=0
    sync
    before=$(stored "$tool")
    /usr/bin/time -f '%e %U %S %M' -o "$work/time" bash -o pipefail -c "$3" >"$work/out" 2>"$work/err" || {
        tail -n 20 "$work/err" "$work/out" >&2
        die "$step by $tool failed"
    }
    after=$(stored "$tool")
    kib=$(((after - before) / 1024))
    printf '%s %s %s %s\n' "$step" "$tool" "$(tail -n 1 "$work/time")" "$kib" >>"$work/times/$what"
}
stored() { du -sb "$work/repository/$1" 2>/dev/null | cut -f1 || echo 0; }

# The commands: capture of the folder `files`, or of a stream that $DUMP writes.
capture_files() {
    case $1 in
    lifeboat) echo "$boat snapshot" ;;
    restic) echo 'restic -q -r "$WORK/repository/restic" backup "$WORK/files"' ;;
    rustic) echo 'rustic --no-progress -r "$WORK/repository/rustic" backup "$WORK/files"' ;;
    borg) echo 'borg create --compression zstd,3 "$WORK/repository/borg::{now:%s.%f}" "$WORK/files"' ;;
    bupstash) echo 'bupstash put -q -r "$WORK/repository/bupstash" --compression zstd:3 --send-log "$WORK/cache.sendlog" name=files "$WORK/files"' ;;
    pipe) echo 'tar -C "$WORK" -cf - files | zstd -q -3 -T2 | age -r "$AGE" >"$WORK/repository/pipe/$(date +%s%N)"' ;;
    esac
}
restore_files() {
    case $1 in
    lifeboat) echo "$boat restore latest --only files --into \"\$WORK/restored\"" ;;
    restic) echo 'restic -q -r "$WORK/repository/restic" restore latest --target "$WORK/restored"' ;;
    rustic) echo 'rustic --no-progress -r "$WORK/repository/rustic" restore latest "$WORK/restored"' ;;
    borg) echo 'mkdir "$WORK/restored" && cd "$WORK/restored" && borg extract "$WORK/repository/borg::$(borg list --last 1 --short "$WORK/repository/borg")"' ;;
    bupstash) echo 'mkdir "$WORK/restored" && bupstash get -q -r "$WORK/repository/bupstash" "id=$(bupstash list -q -r "$WORK/repository/bupstash" --format jsonl1 "name=files" | tail -n 1 | jq -r .id)" | tar -C "$WORK/restored" -xpf -' ;;
    pipe) echo 'mkdir "$WORK/restored" && age -d -i "$WORK/age.key" "$(ls -d "$WORK"/repository/pipe/* | tail -n 1)" | zstd -dcq | tar -C "$WORK/restored" -xpf -' ;;
    esac
}
check_all() {
    case $1 in
    lifeboat) echo "$boat verify --deep" ;;
    restic) echo 'restic -q -r "$WORK/repository/restic" check --read-data' ;;
    rustic) echo 'rustic --no-progress -r "$WORK/repository/rustic" check --read-data' ;;
    borg) echo 'borg check --verify-data "$WORK/repository/borg"' ;;
    bupstash) echo 'for id in $(bupstash list -q -r "$WORK/repository/bupstash" --format jsonl1 | tail -n 1 | jq -r .id); do bupstash get -q -r "$WORK/repository/bupstash" id=$id >/dev/null; done' ;;
    pipe) echo 'age -d -i "$WORK/age.key" "$(ls -d "$WORK"/repository/pipe/* | tail -n 1)" | zstd -dcq >/dev/null' ;;
    esac
}
capture_dump() {
    case $1 in
    lifeboat) echo "$boat snapshot" ;;
    restic) echo "$2"' | restic -q -r "$WORK/repository/restic" backup --stdin --stdin-filename dump' ;;
    rustic) echo "$2"' | rustic --no-progress -r "$WORK/repository/rustic" backup --force --stdin-filename dump -' ;;
    borg) echo "$2"' | borg create --compression zstd,3 "$WORK/repository/borg::{now:%s.%f}" -' ;;
    bupstash) echo "$2"' | bupstash put -q -r "$WORK/repository/bupstash" --compression zstd:3 name=dump -' ;;
    pipe) echo "$2"' | zstd -q -3 -T2 | age -r "$AGE" >"$WORK/repository/pipe/$(date +%s%N)"' ;;
    esac
}

# where TOOL puts the folder `files` below what it restores.
restored_at() {
    local at
    at=$(find "$work/restored" -maxdepth 12 -type d -path '*/empty/folder' | head -n 1)
    if [ -n "$at" ]; then echo "${at%/empty/folder}"; else die "$1 restored no folder files"; fi
}
drop_restored() { rm -rf "$work/restored"; sync; }

bench_files() {
    what=files
    printf 'making the files ...\n'
    python3 "$workload" make "$work/files" "$files_mib"
    printf '%s MiB in %s files\n' "$(du -sm --apparent-size "$work/files" | cut -f1)" "$(find "$work/files" -type f | wc -l)"
    printf '[[source]]\nkind = "files"\npaths = ["%s"]\n' "$work/files" >"$work/source.toml"
    # Times of the files must lie behind the first run, or it would not remember them.
    sleep 3
    local round tool
    for round in $(seq "$runs"); do
        for tool in $taking_part; do new_repository "$tool"; measure first "$tool" "$(capture_files "$tool")"; done
        for tool in $taking_part; do
            [ "$tool" = pipe ] || measure unchanged "$tool" "$(capture_files "$tool")"
        done
        python3 "$workload" change "$work/files" "$work/saved"
        sleep 3
        for tool in $taking_part; do
            [ "$tool" = pipe ] || measure changed "$tool" "$(capture_files "$tool")"
        done
        for tool in $taking_part; do
            [ "$tool" != pipe ] || measure changed "$tool" "$(capture_files "$tool")"
            drop_restored
            measure restore "$tool" "$(restore_files "$tool")"
            if [ "$round" = 1 ]; then
                diff -r --no-dereference "$work/files" "$(restored_at "$tool")" || die "$tool restored other bytes"
                python3 "$workload" compare "$work/files" "$(restored_at "$tool")" ||
                    { [ "$tool" != lifeboat ] || die "lifeboat restored other metadata"; printf '%s does not restore all metadata\n' "$tool"; }
            fi
            drop_restored
        done
        for tool in $taking_part; do measure check "$tool" "$(check_all "$tool")"; done
        python3 "$workload" undo "$work/files" "$work/saved"
        sleep 3
    done
    for tool in $taking_part; do rm -rf "$work/repository/$tool"; done
    rm -rf "$work/files"
    table files 'first snapshot:first' 'unchanged:unchanged' 'after 1 %:changed' 'restore:restore' 'deep check:check'
}

sql() { psql -XqAt -v ON_ERROR_STOP=1 -h "$work/pg/run" -p "$port" -U postgres -d shop "$@"; }

start_postgres() {
    mkdir -p "$work/pg/run"
    [ "$(id -u)" != 0 ] || chown -R postgres: "$work/pg"
    as_postgres "$bin/initdb" -A trust -U postgres -E UTF8 --locale=C.UTF-8 -N -D "$work/pg/data" >/dev/null
    as_postgres "$bin/pg_ctl" -w -s -D "$work/pg/data" -l "$work/pg/log" \
        -o "-F -p $port -c listen_addresses=127.0.0.1 -k $work/pg/run -c max_wal_size=8GB -c shared_buffers=512MB -c autovacuum=off" start >/dev/null
    psql -XqAt -h "$work/pg/run" -p "$port" -U postgres -d postgres -c 'create database shop'
}

fill_postgres() {
    # Rows of about 250 bytes: customers, orders and events; two large tables and some small ones.
    local rows=$((postgres_mib * 2600))
    sql <<SQL
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
    sql -c 'vacuum analyze' -c checkpoint
}

# The second day: new rows, some recent orders get another state, and a few old ones anywhere.
second_day() {
    sql <<'SQL'
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
    what=postgres
    port=$(shuf -i 30000-34999 -n 1)
    printf 'making the database ...\n'
    start_postgres
    fill_postgres
    printf 'database of %s, dump of %s MiB\n' "$(sql -c "select pg_size_pretty(pg_database_size('shop'))")" \
        "$(($(pg_dump -Fc -Z0 -h "$work/pg/run" -p "$port" -U postgres shop | wc -c) >> 20))"
    cat >"$work/source.toml" <<TOML
[[source]]
kind = "postgres"
url = "postgres://postgres@127.0.0.1:$port/shop"
TOML
    local dump="\"$bin/pg_dump\" -Fc -Z0 -h \"$work/pg/run\" -p $port -U postgres shop" round tool
    for round in $(seq "$runs"); do
        for tool in $taking_part; do new_repository "$tool"; measure first "$tool" "$(capture_dump "$tool" "$dump")"; done
    done
    second_day
    for tool in $taking_part; do measure second "$tool" "$(capture_dump "$tool" "$dump")"; done
    for tool in $taking_part; do rm -rf "$work/repository/$tool"; done
    as_postgres "$bin/pg_ctl" -s -D "$work/pg/data" -m fast stop
    rm -rf "$work/pg"
    table Postgres 'first day:first' 'second day:second'
}

bench_redis() {
    what=redis
    need_root_or_have redis-server=redis-server redis-cli=redis-tools
    port=$(shuf -i 35000-39999 -n 1)
    redis-server --port "$port" --bind 127.0.0.1 --dir "$work" --daemonize yes --pidfile "$work/redis.pid" --save '' \
        --rdbcompression yes --logfile "$work/redis.log" >/dev/null
    for _ in $(seq 100); do [ "$(redis-cli -p "$port" ping 2>/dev/null)" != PONG ] || break; sleep 0.1; done
    python3 - "$redis_mib" <<'P' | redis-cli -p "$port" --pipe >/dev/null
import random, sys
r, out = random.Random(9), sys.stdout.buffer
def put(*words):
    out.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
words = [bytes(r.choices(b"abcdefghijklmnop", k=7)) for _ in range(5000)]
left, n = int(sys.argv[1]) << 20, 0
while left > 0:
    value = r.randbytes(300) if n % 2 else b" ".join(r.choices(words, k=60))
    put(b"SET", b"session:%d" % n, value)
    put(b"HSET", b"user:%d" % (n % 50000), b"f%d" % (n % 7), value[:40])
    left -= len(value) + 100
    n += 1
P
    cat >"$work/source.toml" <<TOML
[[source]]
kind = "redis"
url = "redis://127.0.0.1:$port"
TOML
    local dump="redis-cli -p $port --rdb - 2>/dev/null" round tool
    for round in $(seq "$runs"); do
        for tool in $taking_part; do new_repository "$tool"; measure first "$tool" "$(capture_dump "$tool" "$dump")"; done
    done
    redis-cli -p "$port" eval 'for n = 1, 4000 do redis.call("SET", "session:" .. n * 37, "changed " .. n) end' 0 >/dev/null
    for tool in $taking_part; do measure second "$tool" "$(capture_dump "$tool" "$dump")"; done
    for tool in $taking_part; do rm -rf "$work/repository/$tool"; done
    kill "$(cat "$work/redis.pid")"
    rm -f "$work/redis.pid"
    table Redis 'first day:first' 'second day:second'
}

# table NAME LABEL:STEP...: medians, and each tool's wall against the fastest other one's.
table() {
    python3 - "$work/times/$what" "$@" <<'P'
import statistics, sys
path, name, *steps = sys.argv[1:]
rows = [line.split() for line in open(path)]
tools = list(dict.fromkeys(r[1] for r in rows))
peers = [t for t in tools if t not in ("lifeboat", "pipe")]
for label, step in (s.split(":") for s in steps):
    found = {}
    for t in tools:
        mine = [[float(x) for x in r[2:]] for r in rows if r[0] == step and r[1] == t]
        if mine:
            wall, user, system, kib, new = (statistics.median(column) for column in zip(*mine))
            found[t] = (wall, user, system, kib / 1024, new / 1024)
    print(f"\n{name}: {label}\n{'':10} {'wall s':>8} {'user s':>8} {'system s':>8} {'peak MiB':>9} {'new MiB':>9}")
    for t, (wall, user, system, peak, new) in found.items():
        print(f"{t:10} {wall:8.2f} {user:8.2f} {system:8.2f} {peak:9.0f} {new:9.1f}")
    if "lifeboat" in found:
        mine = found["lifeboat"]
        others = {t: v for t, v in found.items() if t in peers}
        def ratio(what, at, among):
            if among:
                best = min(among, key=lambda t: among[t][at])
                if among[best][at] > 0:
                    print(f"  {what}: {mine[at] / among[best][at]:.2f} × {best}")
        ratio("wall", 0, others)
        cpu = {t: (v[0], v[1] + v[2]) for t, v in found.items()}
        if others:
            best = min(others, key=lambda t: cpu[t][1])
            print(f"  CPU: {cpu['lifeboat'][1] / max(cpu[best][1], 0.01):.2f} × {best}")
            best = min(others, key=lambda t: others[t][1])
            print(f"  user CPU: {mine[1] / max(others[best][1], 0.01):.2f} × {best}")
        if "pipe" in found:
            print(f"  wall: {mine[0] / max(found['pipe'][0], 0.01):.2f} × pipe")
        if step in ("first", "changed", "second"):
            ratio("new bytes", 4, others)
P
}

printf 'lifeboat: %s\n' "$("$LIFEBOAT" --version)"
for tool in $taking_part; do
    case $tool in
    restic) printf '%s: %s\n' "$tool" "$(restic version 2>/dev/null | head -n 1)" ;;
    borg | rustic | bupstash) printf '%s: %s\n' "$tool" "$("$tool" --version 2>/dev/null | head -n 1)" ;;
    esac
done
for part in $only; do "bench_$part"; done
