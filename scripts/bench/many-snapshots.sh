#!/usr/bin/env bash
# What a repository of many snapshots costs: `list` with and without what this host remembers, and keyless `verify`:
# seconds, peak memory, and how they grow. Every snapshot is a real one, taken by the command and signed.
#
#   scripts/bench/many-snapshots.sh [COUNT...]        default: 500 1000 2000
#
# LIFEBOAT=FILE      the binary to measure (default: the release build of this folder, made if need be)
# REPOSITORY=URL     where the snapshots go (default: a temporary folder); an s3:// URL needs S3_ENDPOINT and the
#                    AWS_* variables, and must be empty
# BENCH_DIR=FOLDER   where keys, state and the default repository lie (default: a new temporary folder)
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
trap 'rm -rf "$work"' EXIT
boat() { "$LIFEBOAT" --config-dir "$work/config" --state-dir "$work/state" "$@"; }

mkdir "$work/app"
boat -q init "$work/app" --name bench --repository "${REPOSITORY:-$work/repository}" >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    die "the repository cannot be set up"
}
policy=$work/config/policies/bench.toml
{
    printf '[app]\nname = "bench"\nroot = "%s"\n\n[repository]\nurl = "%s"\n' "$work/app" "${REPOSITORY:-$work/repository}"
    [ -z "${S3_ENDPOINT-}" ] || printf 'endpoint = "%s"\npath_style = true\ncredentials = "env"\n' "$S3_ENDPOINT"
    printf 'min_free = "1MiB"\n'
    printf 'recipients = ["%s"]\n' "$(sed -n 's/^# recipient: //p' "$work/config/identity.txt")"
    printf '\n[[source]]\nkind = "command"\nname = "tick"\nrun = ["date", "+%%s%%N"]\n'
    printf '[[source]]\nkind = "%s"\nenabled = false\n' env git compose
} >"$work/bench.toml"
mv "$work/bench.toml" "$policy"
boat -q policy check >/dev/null
# From here on the host is sealed: nothing below needs a key that opens.
mv "$work/config/identity.txt" "$work/identity.txt"

# measure LABEL COMMAND...: best of three; prints seconds and peak memory.
measure() {
    local label=$1 best='' peak=0 seconds kib n
    shift
    for n in 1 2 3; do
        "$BEFORE"
        /usr/bin/time -f '%e %M' -o "$work/time" "$LIFEBOAT" --config-dir "$work/config" --state-dir "$work/state" "$@" \
            >"$work/out" 2>"$work/err" || { cat "$work/err" >&2; die "$label failed"; }
        read -r seconds kib <"$work/time"
        if [ "$n" = 1 ] || awk "BEGIN { exit !($seconds < $best) }"; then best=$seconds; fi
        [ "$kib" -le "$peak" ] || peak=$kib
    done
    printf '%9s  %-26s %8.2f s %8.1f MiB\n' "$there" "$label" "$best" "$(awk "BEGIN { print $peak / 1024 }")"
}
forget() { rm -rf "$work/state/cache"; }
remember() { :; }

there=0
printf '%9s  %-26s %10s %12s\n' snapshots command time 'peak memory'
for count in "$@"; do
    begun=$(now_ms)
    from=$there
    while [ "$there" -lt "$count" ]; do
        boat -q snapshot >/dev/null
        there=$((there + 1))
    done
    printf '%9s  %-26s %10s\n' "$there" "taking $((there - from)) of them" "$(seconds_since "$begun")"
    BEFORE=forget measure "list, nothing remembered" list --json
    listed=$(jq '.snapshots | length' "$work/out")
    [ "$listed" = "$there" ] || die "list shows $listed snapshots of $there"
    BEFORE=remember measure "list, headers remembered" list --json
    BEFORE=remember measure "verify, no key" verify --json
    BEFORE=remember measure "snapshot, and its proof" -q snapshot
    there=$((there + 3))
done
