#!/usr/bin/env bash
# Snapshot and restore over S3 on loopback, with 0 and 40 ms of added latency, beside restic (and rustic, where it is
# installed): seconds, requests, bytes sent and received. All in one run on one server, so the ratios count, not the
# seconds.
#
#   scripts/bench/s3.sh [MIB]                          default: 64 MiB in some 1,200 files
#
# LIFEBOAT=FILE      the binary to measure (default: the release build of this folder, made if need be)
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname "$0")/../lib.sh"

need_s3_servers
need_root_or_have restic=restic python3=python3
if [ -z "${LIFEBOAT-}" ]; then
    need_rust
    (cd "$LIFEBOAT_SRC" && cargo build --release --locked --quiet)
    LIFEBOAT=$CARGO_TARGET_DIR/release/lifeboat
fi
mib=${1:-64}
rustic=$(command -v rustic || ls "$LIFEBOAT_TOOLS/bin/rustic" 2>/dev/null || true)

work=$(mktemp -d "${TMPDIR:-/tmp}/lifeboat-bench.XXXXXX")
pids=()
finish() {
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

export AWS_ACCESS_KEY_ID=AKIABENCHBENCHBENCH0 AWS_SECRET_ACCESS_KEY=a-secret-of-this-bench AWS_DEFAULT_REGION=us-east-1
export RESTIC_PASSWORD=bench RUSTIC_PASSWORD=bench XDG_CACHE_HOME=$work/cache
server_port=$(shuf -i 20000-24999 -n 1)
mkdir -p "$work/buckets/bench"
"$LIFEBOAT_TOOLS/bin/s3s-fs" --host 127.0.0.1 --port "$server_port" --access-key "$AWS_ACCESS_KEY_ID" \
    --secret-key "$AWS_SECRET_ACCESS_KEY" "$work/buckets" >"$work/server.log" 2>&1 &
pids+=($!)

# Text that compresses about threefold, in files of all sizes.
python3 - "$work/app/data" "$mib" <<'P'
import os, random, sys
root, mib = sys.argv[1], int(sys.argv[2])
random.seed(7)
words = [bytes(random.choices(b"abcdefghijklmnopqrstuvwxyz", k=random.randint(3, 9))) for _ in range(20000)]
left, n = mib << 20, 0
while left > 0:
    size = min(left, int(random.paretovariate(1.1) * 6000) if n % 50 else 1 << 20)
    folder = os.path.join(root, f"{n // 100:03}")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"f{n:05}"), "wb") as out:
        while out.tell() < size:
            out.write(b" ".join(random.choices(words, k=200)))
    left -= size
    n += 1
P
find "$work/app/data" -type f -exec touch -d '2 hours ago' {} +
one=$(find "$work/app/data" -type f -size -20k | sort | sed -n 100p)
printf '%s files, %s MiB\n' "$(find "$work/app/data" -type f | wc -l)" "$mib"

proxy=''
: >"$work/counts"
start_proxy() {
    proxy_port=$(shuf -i 25000-29999 -n 1)
    python3 "$LIFEBOAT_SRC/scripts/bench/latency-proxy.py" "$proxy_port" "$server_port" "$1" "$work/counts" &
    proxy=$!
    pids+=("$proxy")
    for _ in $(seq 100); do
        (: <"/dev/tcp/127.0.0.1/$proxy_port") 2>/dev/null && break
        sleep 0.05
    done
}

# counted: requests and bytes since it was last asked.
counted() {
    local lines
    lines=$(wc -l <"$work/counts")
    kill -USR1 "$proxy"
    while [ "$(wc -l <"$work/counts")" -le "$lines" ]; do sleep 0.02; done
    tail -n 1 "$work/counts"
}

# measure TOOL STEP COMMAND...
measure() {
    local tool=$1 what=$2 begun ended requests up down
    shift 2
    counted >/dev/null
    begun=$(now_ms)
    "$@" >"$work/out" 2>"$work/err" || {
        cat "$work/out" "$work/err" >&2
        die "$tool: $what failed"
    }
    ended=$(now_ms)
    read -r requests up down < <(counted)
    printf '%-9s %-22s %8.2f s %7d requests %9.1f MiB up %9.1f MiB down\n' "$tool" "$what" \
        "$(awk "BEGIN { print ($ended - $begun) / 1000 }")" "$requests" \
        "$(awk "BEGIN { print $up / 1048576 }")" "$(awk "BEGIN { print $down / 1048576 }")"
}

boat() { "$LIFEBOAT" -q --config-dir "$work/$place-config" --state-dir "$work/$place-state" "$@"; }

lifeboat_steps() {
    local url=$1 endpoint=${2-}
    place=$3
    boat init "$work/app" --name bench --repository "$url" ${endpoint:+--endpoint "$endpoint" --region us-east-1 --credentials env}
    printf '\n[[source]]\nkind = "files"\npaths = ["%s"]\n' "$work/app/data" >>"$work/$place-config/policies/bench.toml"
    sed -i 's/^\[repository\]/&\nmin_free = "1MiB"/' "$work/$place-config/policies/bench.toml"
    measure "$4" 'first snapshot' boat snapshot
    measure "$4" 'unchanged' boat snapshot
    measure "$4" 'unchanged again' boat snapshot
    measure "$4" 'one file' boat restore latest --only files --path "$one" --into "$work/$place-one"
    measure "$4" 'all files' boat restore latest --only files --into "$work/$place-all"
}

for delay in 0 40; do
    printf '\n%s ms of added latency\n' "$delay"
    start_proxy "$delay"
    endpoint=http://127.0.0.1:$proxy_port
    [ "$delay" != 0 ] || lifeboat_steps "$work/local-repository" '' local 'local'
    lifeboat_steps "s3://bench/lifeboat-$delay" "$endpoint" "s3-$delay" lifeboat
    export RESTIC_REPOSITORY=s3:$endpoint/bench/restic-$delay
    restic -q init
    measure restic 'first snapshot' restic -q backup "$work/app/data"
    measure restic 'unchanged' restic -q backup "$work/app/data"
    measure restic 'unchanged again' restic -q backup "$work/app/data"
    measure restic 'one file' restic -q restore latest --include "$one" --target "$work/restic-one-$delay"
    measure restic 'all files' restic -q restore latest --target "$work/restic-all-$delay"
    if [ -n "$rustic" ]; then
        cat >"$work/rustic.toml" <<T
[repository]
repository = "opendal:s3"
password = "bench"
[repository.options]
bucket = "bench"
root = "/rustic-$delay"
endpoint = "$endpoint"
region = "us-east-1"
T
        rusty() { (cd "$work" && "$rustic" --log-level warn -P "$work/rustic" "$@"); }
        rusty init
        measure rustic 'first snapshot' rusty backup "$work/app/data"
        measure rustic 'unchanged' rusty backup "$work/app/data"
        measure rustic 'unchanged again' rusty backup "$work/app/data"
        measure rustic 'one file' rusty restore "latest:$one" "$work/rustic-one-$delay"
        measure rustic 'all files' rusty restore latest "$work/rustic-all-$delay"
    fi
    kill "$proxy"
    wait "$proxy" 2>/dev/null || true
    rm -rf "$work"/*-all "$work"/*-all-*
done
cmp "$one" "$work/s3-40-one/files$one"
