#!/usr/bin/env bash
# test-garage.sh: the storage suite and one round trip of the binary on Garage, a distributed object store that ignores
# conditional writes. Garage is built once (some minutes of a processor).
set -euo pipefail
exec </dev/null
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$LIFEBOAT_SRC"

GARAGE_VERSION=2.5.0
need_rust
need_packages build
need_root_or_have openssl=openssl curl=curl
[ -x "$LIFEBOAT_TOOLS/bin/garage" ] ||
    locked garage tool_from_source garage "$GARAGE_VERSION" --no-default-features --features bundled-libs,sqlite,lmdb

dir=$(mktemp -d)
pid=''
finish() {
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    [ -z "$pid" ] || wait "$pid" 2>/dev/null || true
    rm -rf "$dir"
}
trap finish EXIT

free_port() {
    local port
    while :; do
        port=$((RANDOM % 20000 + 20000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}
api=$(free_port) rpc=$(free_port)
umask 077
printf '%s\n' "metadata_dir = \"$dir/meta\"" "data_dir = \"$dir/data\"" 'db_engine = "sqlite"' 'replication_factor = 1' \
    "rpc_bind_addr = \"127.0.0.1:$rpc\"" "rpc_public_addr = \"127.0.0.1:$rpc\"" "rpc_secret = \"$(openssl rand -hex 32)\"" \
    '[s3_api]' 's3_region = "garage"' "api_bind_addr = \"127.0.0.1:$api\"" 'root_domain = ".s3.garage.localhost"' \
    >"$dir/garage.toml"
GARAGE_DEFAULT_ACCESS_KEY=GK$(openssl rand -hex 12)
GARAGE_DEFAULT_SECRET_KEY=$(openssl rand -hex 32)
export GARAGE_DEFAULT_ACCESS_KEY GARAGE_DEFAULT_SECRET_KEY GARAGE_DEFAULT_BUCKET=backups
printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$GARAGE_DEFAULT_ACCESS_KEY" "$GARAGE_DEFAULT_SECRET_KEY" \
    >"$dir/s3.env"
"$LIFEBOAT_TOOLS/bin/garage" -c "$dir/garage.toml" server --single-node --default-bucket >"$dir/log" 2>&1 &
pid=$!
for _ in $(seq 300); do
    curl -s -o /dev/null "http://127.0.0.1:$api/" && break
    kill -0 "$pid" 2>/dev/null || { tail -n 20 "$dir/log" >&2; die "Garage does not start; see above"; }
    sleep 0.1
done
unset GARAGE_DEFAULT_SECRET_KEY

printf '%s\n' "${BOLD}== $("$LIFEBOAT_TOOLS/bin/garage" --version | head -n 1): the storage suite${PLAIN}"
export LIFEBOAT_GARAGE_ENDPOINT=http://127.0.0.1:$api LIFEBOAT_GARAGE_BUCKET=backups LIFEBOAT_GARAGE_CREDENTIALS=$dir/s3.env
cargo test --locked --quiet --test s3 -- --ignored --nocapture on_garage

printf '%s\n' "${BOLD}== snapshot, verify, restore${PLAIN}"
cargo build --locked --quiet
lifeboat() { "$CARGO_TARGET_DIR/debug/lifeboat" --config-dir "$dir/config" --state-dir "$dir/state" "$@"; }
mkdir "$dir/shop"
printf 'DB_PASSWORD=canary\n' >"$dir/shop/.env"
head -c 40000000 /dev/urandom >"$dir/shop/uploads.bin"
lifeboat -q init "$dir/shop" --repository s3://backups/shop --endpoint "$LIFEBOAT_GARAGE_ENDPOINT" --region garage \
    --credentials "file:$dir/s3.env"
printf '[[source]]\nkind = "files"\npaths = ["uploads.bin"]\n' >>"$dir/config/policies/shop.toml"
lifeboat snapshot
lifeboat snapshot
lifeboat verify
lifeboat -q restore latest --into "$dir/back"
for name in .env uploads.bin; do
    back=$(find "$dir/back" -type f -name "$name" | head -n 1)
    cmp "$dir/shop/$name" "${back:-$dir/back/$name}" || die "$name did not come back"
done
printf '%s\n' "${GREEN}all came back from Garage${PLAIN}"
