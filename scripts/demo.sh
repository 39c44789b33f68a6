#!/usr/bin/env bash
# demo.sh [--keep]: a small shop on real servers, a snapshot of it, the loss of everything, and the proof that it is
# back. Uses a folder of its own, loopback and unix sockets; nothing of this machine is touched. --keep leaves the
# folder. As root on Debian 12 it installs the servers that are missing.
set -euo pipefail
exec </dev/null
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

keep=0
case ${1-} in
--keep) keep=1 ;;
'') ;;
*) die "usage: demo.sh [--keep]" ;;
esac

postgres_bin=/usr/lib/postgresql/15/bin
# shellcheck disable=SC2016 # the name of a database, not a command
odd_database='orders "2026" $(id)'
started=$(now_ms)

# --- output ----------------------------------------------------------------------------------------------------------

heading() { printf '\n%s\n' "${BOLD}$*${PLAIN}"; }
say() { printf '%s\n' "  $*"; }
ok() { printf '%s\n' "  ${GREEN}✔${PLAIN} $*"; }
wrong() { die "  ✘ $*"; }

# show COMMAND...: prints the command as a person types it, and what it answers, without its progress. The folder's long
# name stands as $DEMO.
show() {
    printf '\n%s\n' "  ${BOLD}\$ $*${PLAIN}" | shorten
    "$@" 2>"$dir/progress" | sed 's/^/  /' | shorten || {
        cat "$dir/progress" >&2
        wrong "$1 failed"
    }
}

shorten() { sed "s|$dir|\$DEMO|g"; }

# Every command also says where its keys and its state lie, so that those of this machine are left alone.
lifeboat() { "$LIFEBOAT_BIN" --config-dir "$dir/config" --state-dir "$dir/state" "$@"; }

# same NAME EXPECTED FOUND: two texts that must be equal.
same() {
    if [ "$2" = "$3" ]; then
        ok "$1"
    else
        diff <(printf '%s\n' "$2") <(printf '%s\n' "$3") >&2 || true
        wrong "$1: not what it was"
    fi
}

# --- servers ---------------------------------------------------------------------------------------------------------

dir=''
redis_pids=()
cleanup() {
    local status=$? pid cluster
    trap - EXIT
    for pid in "${redis_pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for cluster in "$dir"/postgres*/data; do
        [ ! -e "$cluster/postmaster.pid" ] || as_postgres "$postgres_bin/pg_ctl" -s -D "$cluster" -m immediate stop || true
    done
    if [ "$keep" = 1 ]; then
        printf '\n%s\n' "  everything is left in $dir"
    else
        rm -rf "$dir"
    fi
    exit "$status"
}

# Postgres refuses to run as root.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then
        # From a folder that it may enter: this one may be another user's alone.
        (cd / && exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$@")
    else
        "$@"
    fi
}

# free_port: a port of loopback on which nothing listens.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    printf '%s\n' "$port"
}

# start_postgres NAME PORT: a new, empty cluster in $dir/NAME whose superuser has the password of PGPASSWORD.
start_postgres() {
    mkdir -p "$dir/$1/run"
    printf '%s' "$PGPASSWORD" >"$dir/$1/password"
    [ "$(id -u)" != 0 ] || chown -R postgres: "$dir/$1"
    as_postgres "$postgres_bin/initdb" -A scram-sha-256 --pwfile="$dir/$1/password" -U postgres -E UTF8 \
        --locale=C.UTF-8 -N -D "$dir/$1/data" >"$dir/$1.log"
    rm "$dir/$1/password"
    as_postgres "$postgres_bin/pg_ctl" -w -s -D "$dir/$1/data" -l "$dir/$1/log" \
        -o "-p $2 -c listen_addresses=127.0.0.1 -k $dir/$1/run -F" start >/dev/null
}

# sql PORT DATABASE [ARGUMENTS]: psql as the superuser; PGPASSWORD comes from the environment.
sql() { psql -XqAt -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$1" -U postgres -d "$2" "${@:3}"; }

# start_redis FOLDER PORT CONFIGURATION: a Redis server on that folder.
start_redis() {
    local pid
    printf 'bind 127.0.0.1\nport %s\ndir %s\nenable-debug-command local\nrepl-diskless-sync-delay 0\n%s\n' "$2" "$1" "$3" >"$1/redis.conf"
    redis-server "$1/redis.conf" >"$1/log" 2>&1 &
    pid=$!
    redis_pids+=("$pid")
    for _ in $(seq 100); do
        [ "$(redis-cli -p "$2" ping 2>/dev/null)" != PONG ] || return 0
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$1/log" >&2
    wrong "Redis does not start"
}

# database_facts PORT DATABASE: every table with its rows and a hash of them, the view, the large objects, the indexes.
database_facts() {
    local table
    sql "$1" "$2" -c "select tablename from pg_tables where schemaname = 'public' order by 1" | while read -r table; do
        sql "$1" "$2" -c "select '$table', count(*), md5(string_agg(t::text, e'\n' order by t::text)) from \"$table\" t"
    done
    sql "$1" "$2" -c "select viewname, definition from pg_views where schemaname = 'public' order by 1"
    sql "$1" "$2" -c "select loid, md5(string_agg(data, '' order by pageno)) from pg_largeobject group by 1 order by 1"
    sql "$1" "$2" -c "select indexdef from pg_indexes where schemaname = 'public' order by 1"
}

redis_facts() { printf '%s keys, digest %s\n' "$(redis-cli -p "$1" dbsize)" "$(redis-cli -p "$1" debug digest)"; }

# --- the shop --------------------------------------------------------------------------------------------------------

build_shop() {
    mkdir -p "$dir/app" "$dir/etc/nginx/conf.d" "$dir/redis"
    (
        umask 077
        cat >"$dir/app/.env" <<ENV
POSTGRES_PASSWORD=$(openssl rand -hex 16)
DB_PASSWORD=$(openssl rand -hex 16)
REDIS_PASSWORD=$(openssl rand -hex 16)
ENCRYPTION_KEY=$(openssl rand -hex 32)
ENV
    )
    # shellcheck disable=SC1091 # made just now
    . "$dir/app/.env"
    export PGPASSWORD=$POSTGRES_PASSWORD REDISCLI_AUTH=$REDIS_PASSWORD

    start_postgres postgres "$pg_port"
    sql "$pg_port" postgres -v odd="$odd_database" -v password="$DB_PASSWORD" <<'SQL'
create role shop login password :'password';
create database shop owner shop;
create database :"odd" owner shop;
SQL
    sql "$pg_port" shop <<'SQL'
set role shop;
create table users (id int primary key, email text unique not null, created timestamptz not null);
create table orders (id int primary key, user_id int not null references users, total numeric(10,2) not null,
    note text, items jsonb not null);
insert into users select n, 'user' || n || '@shop.example', timestamptz '2026-01-01' + n * interval '1 hour'
    from generate_series(1, 2000) n;
insert into orders select n, 1 + n % 2000, (n % 9973) / 100.0, repeat(md5(n::text) || ' ', 1 + n % 4),
    jsonb_build_object('sku', md5((n * 7)::text), 'count', n % 5) from generate_series(1, 50000) n;
create index orders_by_user on orders (user_id, total desc);
create view big_spenders as select user_id, sum(total) as spent from orders group by 1 having sum(total) > 1000;
\o /dev/null
select lo_from_bytea(4242, decode(repeat('c0ffee', 20000), 'hex'));
SQL
    sql "$pg_port" "$odd_database" -c "create table archive as select n as id, md5(n::text) as line from generate_series(1, 1000) n"
    ok "Postgres 15 on 127.0.0.1:$pg_port: 2,000 users, 50,000 orders, an index, a view, a large object,"
    say "  and a second database called ${odd_database}"

    start_redis "$dir/redis" "$redis_port" "appendonly yes
requirepass $REDIS_PASSWORD"
    {
        seq 1000 | awk '{ print "set cart:" $1 " " $1 * 37; if ($1 % 10 == 0) print "expire cart:" $1 " 86400" }'
        echo "rpush queue:mail welcome invoice reminder"
        echo "hset settings currency EUR language hr"
    } | redis-cli -p "$redis_port" >/dev/null
    ok "Redis 7 on 127.0.0.1:$redis_port: 1,002 keys, append-only file, password"

    "$LIFEBOAT_SRC/tests/support/certificates.sh" "$dir/etc/letsencrypt" shop.example
    cat >"$dir/etc/nginx/nginx.conf" <<NGINX
worker_processes 1;
pid $dir/nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path $dir/nginx-temp; proxy_temp_path $dir/nginx-temp; fastcgi_temp_path $dir/nginx-temp;
    uwsgi_temp_path $dir/nginx-temp; scgi_temp_path $dir/nginx-temp;
    include conf.d/*.conf;
}
NGINX
    cat >"$dir/etc/nginx/conf.d/shop.conf" <<NGINX
server {
    listen 127.0.0.1:$nginx_port ssl;
    server_name shop.example;
    ssl_certificate $dir/etc/letsencrypt/live/shop.example/fullchain.pem;
    ssl_certificate_key $dir/etc/letsencrypt/live/shop.example/privkey.pem;
    location / { proxy_pass http://127.0.0.1:8001; }
}
NGINX
    test_nginx >/dev/null || wrong "the configuration of nginx is wrong"
    ok "nginx with a site over HTTPS, and a certificate as certbot keeps it (live/ links into archive/)"

    cat >"$dir/app/compose.yaml" <<'COMPOSE'
services:
  api:
    image: shop/api:1.0.0
    env_file: .env
    ports: ["127.0.0.1:8001:8000"]
COMPOSE
    printf 'print("shop 1.0.0")\n' >"$dir/app/api.py"
    printf '.env\n' >"$dir/app/.gitignore"
    git_app init -q -b main
    git_app add -A
    git_app commit -q -m "Open the shop"
    git_app tag v1.0.0
    printf '# a change that nobody has committed yet\n' >>"$dir/app/api.py"
    ok "the application: a git checkout with a compose file, a .env outside git, and an edit that is not committed"
}

git_app() {
    git -C "$dir/app" -c user.name=Demo -c user.email=demo@shop.example -c commit.gpgsign=false \
        -c core.hooksPath=/dev/null "$@"
}

test_nginx() { nginx -t -c "$dir/etc/nginx/nginx.conf" -g "error_log stderr;" 2>&1; }

write_policy() {
    cat >>"$policy" <<POLICY

# --- added by the demo ---

[[source]]
kind = "postgres"
url = "postgres://postgres@127.0.0.1:$pg_port/shop"
databases = ["*"]
password_from = ".env:POSTGRES_PASSWORD"
fingerprint = "content"

[[source]]
kind = "redis"
url = "redis://127.0.0.1:$redis_port"
password_from = ".env:REDIS_PASSWORD"

[[source]]
kind = "nginx"
paths = ["$dir/etc/nginx"]

[[source]]
kind = "certificates"
paths = ["$dir/etc/letsencrypt"]
POLICY
}

a_day_passes() {
    sql "$pg_port" shop <<'SQL'
set role shop;
insert into orders select n, 1 + n % 2000, 42, 'the second day', '{}' from generate_series(50001, 50100) n;
update users set email = 'new-' || email where id = 7;
SQL
    redis-cli -p "$redis_port" set cart:7 changed >/dev/null
    redis-cli -p "$redis_port" lpop queue:mail >/dev/null
}

# --- the loss and the proof ------------------------------------------------------------------------------------------

remember_facts() {
    shop_before=$(database_facts "$pg_port" shop)
    odd_before=$(database_facts "$pg_port" "$odd_database")
    redis_before=$(redis_facts "$redis_port")
}

lose_everything() {
    as_postgres "$postgres_bin/pg_ctl" -s -D "$dir/postgres/data" -m immediate stop
    kill "${redis_pids[0]}"
    wait "${redis_pids[0]}" 2>/dev/null || true
    rm -rf "$dir/postgres" "$dir/redis"
    # Kept aside only to compare with.
    mkdir "$dir/before"
    mv "$dir/app" "$dir/etc" "$dir/before"
}

prove_files() {
    local source
    for source in nginx certificates; do
        mkdir -p "$dir/etc"
        cp -a "$dir/restored/$source$dir/etc/." "$dir/etc/"
    done
    # What the restore in place replaced lies beside, and is nobody's backup.
    diff -r --no-dereference --exclude='.lifeboat-*' "$dir/before/etc" "$dir/etc" || wrong "the configuration is not what it was"
    same "nginx configuration and certificates are byte for byte what they were, owners, modes and times as well" \
        "$(metadata "$dir/before/etc")" "$(metadata "$dir/etc")"
    test_nginx >"$dir/nginx-test" || { cat "$dir/nginx-test"; wrong "nginx -t refuses what was restored"; }
    openssl verify -CAfile "$dir/etc/letsencrypt/root.pem" -untrusted "$dir/etc/letsencrypt/live/shop.example/chain.pem" \
        "$dir/etc/letsencrypt/live/shop.example/cert.pem" >/dev/null || wrong "the certificate chain does not verify"
    ok "nginx -t accepts them, the certificate chain verifies"
}

metadata() { (cd "$1" && find . -mindepth 1 -name '.lifeboat-*' -prune -o -mindepth 1 -printf '%p %m %U:%G %T@ %l\n' | sort); }

prove_git() {
    git clone -q -b main "$dir/restored/git/repository.bundle" "$dir/app" 2>/dev/null || wrong "the git bundle does not clone"
    git -C "$dir/app" apply "$dir/restored/git/edits.patch" || wrong "the edits do not apply"
    cp -a "$dir/restored/env$dir/app/.env" "$dir/app/.env"
    diff -r --exclude=.git "$dir/before/app" "$dir/app" || wrong "the checkout is not what it was"
    same "git clone of the bundle, git apply of the edits, and .env: the checkout is what it was" \
        "$(git -C "$dir/before/app" log --oneline --decorate=no; git -C "$dir/before/app" status --short)" \
        "$(git -C "$dir/app" log --oneline --decorate=no; git -C "$dir/app" status --short)"
}

prove_postgres() {
    local port dump database
    port=$(free_port)
    start_postgres postgres-new "$port"
    # The superuser is there already; every other role comes from the globals.
    sql "$port" postgres -v ON_ERROR_STOP=0 -f "$dir/restored/postgres/globals.sql" >/dev/null 2>&1
    for dump in "$dir/restored/postgres/"*.dump; do
        database=$(basename "$dump" .dump)
        database=$(printf '%b' "${database//%/\\x}")
        case $database in shop | "$odd_database") ;; *) continue ;; esac
        sql "$port" postgres -v name="$database" <<<'create database :"name" owner shop template template0;'
        "$postgres_bin/pg_restore" --exit-on-error -h 127.0.0.1 -p "$port" -U postgres \
            --dbname="host=127.0.0.1 port=$port user=postgres dbname='${database//\'/\\\'}'" "$dump"
    done
    same "pg_restore into a new cluster: tables, rows, contents, view, index and large object of shop are equal" \
        "$shop_before" "$(database_facts "$port" shop)"
    same "the database $odd_database as well" "$odd_before" "$(database_facts "$port" "$odd_database")"
    same "the role shop signs in with the password of .env" 50100 \
        "$(PGPASSWORD=$DB_PASSWORD psql -XqAt -h 127.0.0.1 -p "$port" -U shop -d shop -c 'select count(*) from orders')"
}

prove_redis() {
    local port
    port=$(free_port)
    mkdir "$dir/redis-new"
    cp "$dir/restored/redis/"*.rdb "$dir/redis-new/dump.rdb"
    start_redis "$dir/redis-new" "$port" "requirepass $REDIS_PASSWORD"
    same "a new Redis loads the RDB: $redis_before" "$redis_before" "$(redis_facts "$port")"
}

# --- the demo --------------------------------------------------------------------------------------------------------

need_packages demo
if [ -z "${LIFEBOAT_BIN-}" ]; then
    need_rust
    need_packages build
    heading "Building lifeboat (about two minutes the first time)"
    (cd "$LIFEBOAT_SRC" && cargo build --locked --bin lifeboat 2>&1 | tail -n 1)
    LIFEBOAT_BIN=$CARGO_TARGET_DIR/debug/lifeboat
fi

# Short, because the names of unix sockets are; passable, because Postgres runs as a user of its own.
dir=$(mktemp -d /tmp/lifeboat-demo.XXXXXX)
chmod 711 "$dir"
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
pg_port=$(free_port) redis_port=$(free_port) nginx_port=$(free_port)
policy=$dir/config/policies/shop.toml

heading "1. A small shop on real servers"
say "${DIM}(in $dir, below called \$DEMO)${PLAIN}"
build_shop

heading "2. Keys, a repository, a policy"
say "${DIM}(each command also carries --config-dir \$DEMO/config --state-dir \$DEMO/state)${PLAIN}"
show lifeboat keys new
show lifeboat init "$dir/app" --name shop --repository "$dir/repository"
write_policy
say "four sources added to it: postgres, redis, nginx, certificates"
show lifeboat policy check

heading "3. A snapshot, and a second one after a day's work"
show lifeboat snapshot --tag demo
a_day_passes
say "(100 orders placed, an email changed, a mail sent)"
remember_facts
show lifeboat snapshot
show lifeboat list

heading "4. Look, and verify"
show lifeboat show latest
show lifeboat verify
show lifeboat verify --deep

heading "5. A drill: the newest snapshot restored into throw-away servers, and held against what was captured"
show lifeboat drill

heading "6. A bad day: a table is dropped and a site is gone; both are put back in place"
sql "$pg_port" shop -c 'drop table orders cascade'
rm "$dir/etc/nginx/conf.d/shop.conf"
say "(drop table orders cascade; rm conf.d/shop.conf)"
show lifeboat restore latest --in-place --only postgres --only nginx --yes
same "every table, row, view, index and large object of shop is back, in the live server" \
    "$shop_before" "$(database_facts "$pg_port" shop)"
test_nginx >/dev/null || wrong "the configuration of nginx is not back"
ok "nginx -t accepts its configuration again; what was replaced is kept for three days (restore --undo)"
show lifeboat snapshot

heading "7. Everything is lost: the servers, their data, the application, /etc"
lose_everything
show lifeboat restore latest --into "$dir/restored"
prove_files
prove_git
prove_postgres
prove_redis

heading "8. Once more without Lifeboat: age, zstd, tar, ssh-keygen and jq"
break-glass.sh() { "$LIFEBOAT_SRC/scripts/break-glass.sh" "$@"; }
show break-glass.sh list "$dir/repository" --identity "$dir/config/identity.txt"
show break-glass.sh restore "$dir/repository" latest --identity "$dir/config/identity.txt" --into "$dir/glass"
diff -r --no-dereference "$dir/restored" "$dir/glass" || wrong "break-glass.sh restores something else"
for source in nginx certificates env; do
    # The folder of a source is made anew; what lies in it is what was captured.
    [ "$(metadata "$dir/restored/$source")" = "$(metadata "$dir/glass/$source")" ] ||
        wrong "break-glass.sh restores $source with other owners, modes or times"
done
ok "both restores are equal: every byte, and owners, modes, times and links of what was captured"

heading "${GREEN}All proved in $(seconds_since "$started")${PLAIN}"
