#!/usr/bin/env bash
# What a repository of many snapshots costs: `list` with and without what this host remembers, and keyless `verify`:
# seconds, peak memory, and how they grow. Every snapshot is a real one, taken by the command and signed.
#
#   scripts/bench/many-snapshots.sh [COUNT...]        default: 500 1000 2000
#
# LIFEBOAT=FILE      the binary to measure (default: the release build of this folder, made if need be)
# S3=yes             measure the same objects in a bucket of s3s-fs on the loopback interface as well, with requests
# BENCH_DIR=FOLDER   where keys, state and repository lie for as long as it runs (default: a new temporary folder)
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname "$0")/../lib.sh"

[ -x /usr/bin/time ] || die "GNU time is missing: install the package time"
if [ -z "${LIFEBOAT-}" ]; then
    need_rust
    (cd "$LIFEBOAT_SRC" && cargo build --release --locked --quiet)
    LIFEBOAT=$CARGO_TARGET_DIR/release/lifeboat
fi
[ $# -gt 0 ] || set -- 500 1000 2000

work=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/lifeboat-bench.XXXXXX")
server=''
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
boat() { "$LIFEBOAT" --config-dir "$work/config" --state-dir "$work/state" "$@"; }

mkdir "$work/app"
boat -q init "$work/app" --name bench --repository "$work/repository" >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    die "the repository cannot be set up"
}
policy=$work/config/policies/bench.toml
{
    printf '[app]\nname = "bench"\nroot = "%s"\n\n[repository]\nurl = "%s"\n' "$work/app" "$work/repository"
    printf 'min_free = "1MiB"\n'
    printf 'recipients = ["%s"]\n' "$(sed -n 's/^# recipient: //p' "$work/config/identity.txt")"
    printf '\n[[source]]\nkind = "command"\nname = "tick"\nrun = ["date", "+%%s%%N"]\n'
    printf '[[source]]\nkind = "%s"\nenabled = false\n' env git compose
} >"$work/bench.toml"
mv "$work/bench.toml" "$policy"
boat -q policy check >/dev/null
# From here on the host is sealed: nothing below needs a key that opens.
mv "$work/config/identity.txt" "$work/identity.txt"

# start_s3: s3s-fs on a free port, and a second installation whose policy names its bucket.
start_s3() {
    need_s3_servers
    local port
    port=$(shuf -i 20000-29999 -n 1)
    export AWS_ACCESS_KEY_ID=AKIABENCHBENCHBENCH0 AWS_SECRET_ACCESS_KEY=a-secret-of-this-bench
    mkdir -p "$work/buckets/bench"
    # Every request is a line of this log.
    RUST_LOG=s3s::service=debug "$LIFEBOAT_TOOLS/bin/s3s-fs" --host 127.0.0.1 --port "$port" \
        --access-key "$AWS_ACCESS_KEY_ID" --secret-key "$AWS_SECRET_ACCESS_KEY" "$work/buckets" >"$work/requests" 2>&1 &
    server=$!
    cp -a "$work/config" "$work/s3-config"
    sed -i "s#^url = .*#url = \"s3://bench/repository\"\nendpoint = \"http://127.0.0.1:$port\"\ncredentials = \"env\"#" \
        "$work/s3-config/policies/bench.toml"
}

# measure LABEL COMMAND...: best of three; prints seconds, peak memory and, over S3, requests.
measure() {
    local label=$1 best='' peak=0 requests=- seconds kib from n
    shift
    for n in 1 2 3; do
        "$before"
        from=$(wc -l 2>/dev/null <"$work/requests" || true)
        /usr/bin/time -f '%e %M' -o "$work/time" "$LIFEBOAT" --config-dir "$work/${where}config" \
            --state-dir "$work/${where}state" "$@" >"$work/out" 2>"$work/err" || {
            cat "$work/err" >&2
            die "$label failed"
        }
        read -r seconds kib <"$work/time"
        if [ "$n" = 1 ] || awk "BEGIN { exit !($seconds < $best) }"; then best=$seconds; fi
        [ "$kib" -le "$peak" ] || peak=$kib
        [ -z "$where" ] || requests=$(tail -n "+$((from + 1))" "$work/requests" | grep -c 'req: Request')
    done
    printf '%9s  %-30s %8.2f s %8.1f MiB %10s\n' "$there" "$label" "$best" "$(awk "BEGIN { print $peak / 1024 }")" "$requests"
}
forget() { rm -rf "$work/${where}state/cache"; }
remember() { :; }

# measure_all WHERE-LABEL
measure_all() {
    local at=$1 listed
    before=forget measure "list$at, nothing remembered" list --json
    listed=$(jq '.snapshots | length' "$work/out")
    [ "$listed" = "$there" ] || die "list$at shows $listed snapshots of $there"
    before=remember measure "list$at, headers remembered" list --json
    before=remember measure "verify$at, no key" verify --json
}

[ -z "${S3-}" ] || start_s3
there=0
printf '%9s  %-30s %10s %12s %10s\n' snapshots command time 'peak memory' requests
for count in "$@"; do
    begun=$(now_ms)
    from=$there
    while [ "$there" -lt "$count" ]; do
        boat -q snapshot >/dev/null
        there=$((there + 1))
    done
    printf '%9s  %-30s %10s\n' "$there" "taking $((there - from)) of them" "$(seconds_since "$begun")"
    where='' measure_all ''
    if [ -n "$server" ]; then
        # The same objects: an object's key is its path.
        rm -rf "$work/buckets/bench/repository"
        cp -rl "$work/repository" "$work/buckets/bench/repository"
        rm -f "$work/buckets/bench/repository/.writers.lock"
        where=s3- measure_all ' (S3)'
    fi
    where='' before=remember measure 'snapshot, and its proof' -q snapshot
    there=$((there + 3))
done
