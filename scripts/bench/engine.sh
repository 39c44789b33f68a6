#!/usr/bin/env bash
# Lifeboat beside restic, borg, rustic, bupstash (whatever of them is found) and the plain pipe tar | zstd | age: files,
# a Postgres and a Redis; first snapshot, unchanged, after a change of about 1 %, restore and deep check; and what of the
# goals is reached. The tools take turns within a step, and another one begins in each round, so the ratios of one run
# count, not the seconds. What is restored is compared: files by bytes, modes, owners and times, databases by all that a
# server loads from them. README.md in this folder says what each number means and how to install the others.
#
#   scripts/bench/engine.sh [full|small]     full: 2 GiB of files, 1.5 GiB of Postgres, 300 MiB of Redis; small: a minute
#
# LIFEBOAT=FILE    the binary to measure (default: the release build of this folder, made if need be)
# ONLY=LIST        of files, postgres, redis (default: these three), million, stream
# TOOLS=LIST       of lifeboat, restic, borg, rustic, bupstash, pipe (default: what is found; of million and stream: lifeboat)
# RUNS=N           rounds; the median counts (default: 3; small, million and stream: 1)
# FILES_MIB, POSTGRES_MIB, REDIS_MIB, MILLION, STREAM_GIB    other sizes (MILLION: how many small files)
# BENCH_DIR=FOLDER where everything lies while it runs (default: a folder below /var/tmp)
set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname "$0")/../lib.sh"

# The parts take their sizes from here.
# shellcheck disable=SC2034
case ${1:-full} in
full) files_mib=2048 postgres_mib=1536 redis_mib=300 million=1000000 stream_gib=20 runs=3 ;;
small) files_mib=96 postgres_mib=64 redis_mib=16 million=20000 stream_gib=1 runs=1 ;;
*) die "usage: engine.sh [full|small]" ;;
esac
# shellcheck disable=SC2034
files_mib=${FILES_MIB:-$files_mib} postgres_mib=${POSTGRES_MIB:-$postgres_mib} redis_mib=${REDIS_MIB:-$redis_mib} \
    million=${MILLION:-$million} stream_gib=${STREAM_GIB:-$stream_gib} runs=${RUNS:-$runs}
only=${ONLY:-files postgres redis}
for part in $only; do
    case $part in files | postgres | redis | million | stream) ;; *) die "ONLY: no part \"$part\"" ;; esac
done
PATH=$LIFEBOAT_CACHE/peers/bin:$PATH
[ -x /usr/bin/time ] || die "GNU time is missing: install the package time"
need_root_or_have /usr/bin/python3.11=python3 age=age zstd=zstd tar=tar jq=jq
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
    restic | borg | rustic | bupstash)
        if command -v "$tool" >/dev/null; then taking_part="$taking_part $tool"; else printf '%s is not installed: left out\n' "$tool"; fi
        ;;
    *) die "TOOLS: no tool \"$tool\"" ;;
    esac
done
here=$(dirname "$(readlink -f "$0")")
workload=$here/workload.py
# shellcheck source=engine/measure.sh
. "$here/engine/measure.sh"
# shellcheck source=engine/tools.sh
. "$here/engine/tools.sh"
# shellcheck source=engine/trees.sh
. "$here/engine/trees.sh"
# shellcheck source=engine/postgres.sh
. "$here/engine/postgres.sh"
# shellcheck source=engine/redis.sh
. "$here/engine/redis.sh"
# shellcheck source=engine/stream.sh
. "$here/engine/stream.sh"

work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/lifeboat-bench.XXXXXX")
chmod 711 "$work"
finish() {
    stop_postgres immediate || true
    stop_redis redis || true
    stop_redis again || true
    rm -rf "$work"
}
trap finish EXIT
export WORK=$work HOME=$work/home XDG_CACHE_HOME=$work/cache
mkdir -p "$work/home" "$work/times"
tools_keys

printf 'lifeboat: %s\n' "$("$LIFEBOAT" --version)"
for tool in $taking_part; do
    case $tool in
    restic) printf '%s: %s\n' "$tool" "$(restic version 2>/dev/null | head -n 1)" ;;
    borg | rustic | bupstash) printf '%s: %s\n' "$tool" "$("$tool" --version 2>/dev/null | head -n 1)" ;;
    esac
done
# Each part takes its own name from here.
for what in $only; do "bench_$what"; done
python3 "$here/engine/report.py" goals "$work/times"
[ "${1:-full}" = full ] || printf '  the goals are for the full sizes: of small ones this only shows that it works\n'
