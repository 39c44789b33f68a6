#!/usr/bin/env bash
# What a rollback of an application like `meta-chat` costs (tests/stacks/meta-chat: API, dashboard, Postgres, Redis with an
# append-only file, RabbitMQ, uploads) when its database is large: the dry run, the whole, each step, and the downtime.
# Fails when the dry run takes more than 3 s, or the downtime more than 10 s beside the start of the containers.
#
#   scripts/bench/rollback.sh [MIB]                    default: a database of about 1,536 MiB
#
# LIFEBOAT=FILE      the binary to measure (default: the release build of this folder, made if need be)
# BENCH_DIR=FOLDER   where all of it lies for as long as it runs (default: /var/tmp)
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname "$0")/../lib.sh"

need_packages demo test
need_docker
need_compose
need_image
need_rabbitmq
if [ -z "${LIFEBOAT-}" ]; then
    need_rust
    (cd "$LIFEBOAT_SRC" && cargo build --release --locked --quiet)
    LIFEBOAT=$CARGO_TARGET_DIR/release/lifeboat
fi
mib=${1:-1536}
stack=$LIFEBOAT_SRC/tests/stacks
hex=$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')
name=meta-chat-$hex
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/lifeboat-bench.XXXXXX")
chmod 711 "$work"
root=$work/meta-chat

compose() { (cd "$root/docker" && docker compose --env-file .env.production --profile ops "$@"); }

finish() {
    [ ! -d "$root/docker" ] || compose down -v --timeout 1 >/dev/null 2>&1 || true
    docker image ls -q --filter "label=lifeboat-test.stack=$hex" | sort -u | xargs -r docker rmi -f >/dev/null 2>&1 || true
    docker image ls --format '{{.Repository}}:{{.Tag}}' | grep "^lifeboat/$name" | xargs -r docker rmi -f >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

# said COMMAND...: quietly; what it said is shown when it fails.
said() {
    "$@" >"$work/said" 2>&1 </dev/null || {
        tail -n 20 "$work/said" >&2
        die "failed: $*"
    }
}

# The first release: the stack's files as its test publishes them, with ports of this run.
cp -a "$stack/meta-chat/v1" "$root"
cp "$stack/common/kit.py" "$stack/common/Dockerfile" "$stack/common/alembic" "$root/api/"
mkdir -p "$root/ops"
cp "$stack/common/postgres.sh" "$root/ops/"
printf '%s\n' '.env*' '*-data/' 'secrets/' '/storage/' >"$root/.gitignore"
api=$(shuf -i 30000-34999 -n 1)
dashboard=$(shuf -i 35000-39999 -n 1)
# Never in the stores' folders; the second release has nothing to fill in.
fill_in() {
    { grep -rlE 'IMAGE|BROKER|STACK|127.0.0.1:8000:|127.0.0.1:8081:' "$root"/{api,dashboard,docker,ops} || true; } |
        xargs -r sed -i \
            -e "s|IMAGE|$LIFEBOAT_TEST_IMAGE|g" -e "s|BROKER|$LIFEBOAT_RABBITMQ_IMAGE|g" -e "s|STACK|$hex|g" \
            -e "s|127.0.0.1:8000:|127.0.0.1:$api:|g" -e "s|127.0.0.1:8081:|127.0.0.1:$dashboard:|g"
}
release() {
    fill_in
    git -C "$root" add -A
    git -C "$root" -c user.name=bench -c user.email=bench@example.org commit -qm "release $1"
    git -C "$root" tag "$1"
}
git init -q -b main "$root"
release v2.0.0
mkdir "$root/docker/secrets"
printf 'POSTGRES_PASSWORD=superuser-%s\nDB_PASSWORD=role-%s\n' "$hex" "$hex" >"$root/docker/.env.production"
printf '7d%.0s' $(seq 32) >"$root/docker/secrets/encryption_key"
chmod 600 "$root/docker/.env.production"
for store in postgres:70 redis:71 rabbitmq:72; do
    mkdir "$root/${store%:*}-data"
    chown "${store#*:}:${store#*:}" "$root/${store%:*}-data"
done
# The superuser's password stands in the server's own environment.
sql() {
    # shellcheck disable=SC2016 # the variable of the container
    compose exec -T postgres sh -c 'PGPASSWORD=$POSTGRES_PASSWORD exec psql -XqAt -v ON_ERROR_STOP=1 -h 127.0.0.1 -U keeper -d metachat' <<<"$1"
}
said compose up -d --build --wait postgres redis rabbitmq
sql "create role metachat login password 'role-$hex'; alter database metachat owner to metachat" >/dev/null
said compose up -d --build
said compose exec -T api alembic upgrade head
said compose exec -T api python3 seed.py
compose exec -T rabbitmq rabbitmqctl -q import_definitions <"$stack/meta-chat/definitions.json" >/dev/null

# Rows of about 330 bytes with indexes: seven tables of the application's own role, the largest half of all.
rows=$((mib * 3350))
for table in 1 2 3 4 5 6 7; do
    share=$((table == 1 ? rows / 2 : rows / 12))
    sql "set role metachat;
create table t$table (id bigint primary key, customer int not null, at timestamptz not null, total numeric(12,2) not null,
    note text not null, items jsonb not null);
insert into t$table select n, n % 99991, timestamptz '2026-01-01' + n * interval '3 s', (n % 99991) / 100.0,
    md5(n::text) || md5((n * 3)::text) || md5((n * 7)::text), jsonb_build_object('sku', md5((n % 5000)::text), 'count', n % 9)
    from generate_series(1, $share) n;
create index on t$table (customer, at);
create index on t$table (at);"
done
# A parallel vacuum keeps its list in the container's 64 MiB of shared memory, where it has no room.
sql 'vacuum (parallel 0, analyze)' >/dev/null
sql checkpoint >/dev/null
printf 'database of %s\n' "$(sql "select pg_size_pretty(pg_database_size('metachat'))")"

boat() { "$LIFEBOAT" --config-dir "$work/config" --state-dir "$work/state" "$@"; }
said boat init "$root" --name "$name" --repository "$work/repository"
policy=$work/config/policies/$name.toml
recipient=$(grep -o 'age1[a-z0-9]*' "$policy" | head -n 1)
# The shipped policy without the bucket's settings, and without nginx and certificates, which are the host's.
awk 'BEGIN { RS = ""; ORS = "\n\n" } !/kind = "(nginx|certificates)"/ && !/^\[\[health\]\]\n(http|certificate)/ && !/^\[notify\]/ && !/^\[\[drill|^\[drill\]/' \
    "$LIFEBOAT_SRC/policies/meta-chat.toml" | sed -E \
    -e "s|^name = \"meta-chat\"|name = \"$name\"|" -e "s|/srv/meta-chat|$root|" -e "s|^url = .*|url = \"$work/repository\"|" \
    -e "s|age1[a-z0-9]+|$recipient|" -e '/^(endpoint|region|credentials) = /d' >"$work/policy"
printf '[[health]]\nhttp = "http://127.0.0.1:%s/health"\nattempts = 30\ninterval = "1s"\n' "$api" >>"$work/policy"
mv "$work/policy" "$policy"
said boat policy check
begun=$(now_ms)
said boat snapshot --tag v2.0.0
printf 'snapshot of v2.0.0: %s\n' "$(seconds_since "$begun")"

# The second release, with a migration, and writes behind it.
cp -a "$stack/meta-chat/v2/." "$root/"
release v2.1.0
said compose up -d --build
said compose exec -T api alembic upgrade head
sql "set role metachat; insert into t2 select n, 1, now(), 1, 'later', '{}' from generate_series(10000001, 10000500) n; delete from t3 where id % 1000 = 0" >/dev/null
for _ in $(seq 60); do
    ! curl -fsS "http://127.0.0.1:$api/health" >"$work/health" 2>/dev/null || break
    sleep 0.5
done
curl -fsS "http://127.0.0.1:$api/health" >/dev/null || die "the second release is not well: $(cat "$work/health")"

begun=$(now_ms)
boat rollback --to v2.0.0 --dry-run >"$work/plan" 2>"$work/err" || {
    cat "$work/err" >&2
    die 'the dry run failed'
}
dry=$(($(now_ms) - begun))
head -n 1 "$work/plan"
boat --json rollback --to v2.0.0 --yes >"$work/report.json" 2>"$work/err" || {
    cat "$work/err" "$work/report.json" >&2
    die 'the rollback failed'
}
curl -fsS "http://127.0.0.1:$api/health" | grep -q '"version": *"2.0.0"' || die 'version 2.0.0 does not answer'
[ "$(sql 'select count(*) from t2 where id > 10000000')" = 0 ] || die 'rows of today are still there'

printf '\n%-48s %9s\n' step seconds
jq -r '.steps[] | [.name, (.seconds * 100 | round / 100 | tostring)] | @tsv' "$work/report.json" |
    while IFS=$'\t' read -r step seconds; do printf '%-48s %9s\n' "$step" "$seconds"; done
start=$(jq '[.steps[] | select(.name == "start services" or .name == "health checks") | .seconds] | add' "$work/report.json")
down=$(jq .downtime_seconds "$work/report.json")
printf '\nin all %s s; dry run %s s; downtime %.2f s, of which %.2f s are the containers'"'"' own start and health\n' \
    "$(jq '.seconds * 100 | round / 100' "$work/report.json")" "$(awk -v ms="$dry" 'BEGIN { printf "%.2f", ms / 1000 }')" \
    "$down" "$start"
[ "$dry" -le 3000 ] || die 'the dry run takes more than 3 s'
awk -v down="$down" -v start="$start" 'BEGIN { exit !(down - start <= 10) }' || die 'more than 10 s of downtime'
