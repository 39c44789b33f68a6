#!/usr/bin/env bash
# Snapshot and restore over S3 on loopback, beside restic (and rustic, where it is installed), in one run on one server,
# so the ratios count, not the seconds:
#
# - latency: seconds, requests, bytes sent and received with 0 and 40 ms added to every answer. The tools take turns, and
#   the least of RUNS times counts;
# - throughput: a first snapshot and a whole restore, into a folder and to the server without a proxy between, by turns.
#   The server works on the same cores, so its CPU time is told beside lifeboat's own.
#
#   scripts/bench/s3.sh [MIB [THROUGHPUT-MIB]]         default: 64 MiB in some 1,000 files, and 400 MiB
#
# LIFEBOAT=FILE      the binary to measure (default: the release build of this folder, made if need be)
# RUNS=N             how often each step is measured (default: 5)
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
mib=${1:-64} large=${2:-400} runs=${RUNS:-5}
rustic=$(command -v rustic || ls "$LIFEBOAT_TOOLS/bin/rustic" 2>/dev/null || true)

work=$(mktemp -d "${TMPDIR:-/tmp}/lifeboat-bench.XXXXXX")
# Apart from everything that comes and goes: the folders above a file are captured as well, with their times.
mkdir -p "$LIFEBOAT_CACHE"
files=$(mktemp -d "$LIFEBOAT_CACHE/bench.XXXXXX")
pids=()
finish() {
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
    rm -rf "$work" "$files"
}
trap finish EXIT

export AWS_ACCESS_KEY_ID=AKIABENCHBENCHBENCH0 AWS_SECRET_ACCESS_KEY=a-secret-of-this-bench AWS_DEFAULT_REGION=us-east-1
export RESTIC_PASSWORD=bench RUSTIC_PASSWORD=bench XDG_CACHE_HOME=$work/cache
server_port=$(shuf -i 20000-24999 -n 1)
mkdir -p "$work/buckets/bench"
"$LIFEBOAT_TOOLS/bin/s3s-fs" --host 127.0.0.1 --port "$server_port" --access-key "$AWS_ACCESS_KEY_ID" \
    --secret-key "$AWS_SECRET_ACCESS_KEY" "$work/buckets" >"$work/server.log" 2>&1 &
server=$!
pids+=("$server")

# make_files FOLDER MIB: text that compresses about threefold, in files of all sizes.
make_files() {
    python3 - "$1" "$2" <<'P'
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
    find "$1" -type f -exec touch -d '2 hours ago' {} +
}
make_files "$files/app/data" "$mib"
one=$(find "$files/app/data" -type f -size -20k | sort | sed -n 100p)
printf '%s files, %s MiB; the least of %s runs\n' "$(find "$files/app/data" -type f | wc -l)" "$mib" "$runs"

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

# run_quietly COMMAND...: what it says is shown when it fails.
run_quietly() {
    "$@" >"$work/out" 2>"$work/err" || {
        cat "$work/out" "$work/err" >&2
        die "failed: $*"
    }
}

# measure TOOL STEP COMMAND...: one more time of a step; the least counts.
declare -A least requests up down own theirs
steps=()
measure() {
    local at="$1|$2" begun ended r u d
    shift 2
    counted >/dev/null
    begun=$(now_ms)
    run_quietly "$@"
    ended=$(now_ms)
    read -r r u d < <(counted)
    [ -n "${least[$at]-}" ] || steps+=("$at")
    if [ -z "${least[$at]-}" ] || [ $((ended - begun)) -lt "${least[$at]}" ]; then
        least[$at]=$((ended - begun)) requests[$at]=$r up[$at]=$u down[$at]=$d
    fi
}

# over A B: A / B with two decimals.
over() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

report() {
    local at
    for at in "${steps[@]}"; do
        printf '%-9s %-16s %7s s %6d requests %8s MiB up %8s MiB down\n' "${at%|*}" "${at#*|}" \
            "$(over "${least[$at]}" 1000)" "${requests[$at]}" "$(over "${up[$at]}" 1048576)" "$(over "${down[$at]}" 1048576)"
    done
}

# ratio STEP TOOL: lifeboat's time as a share of another tool's.
ratio() {
    [ -n "${least["$2|$1"]-}" ] || return 0
    printf '%-16s lifeboat takes %s of the time of %s\n' "$1" "$(over "${least["lifeboat|$1"]}" "${least["$2|$1"]}")" "$2"
}

# boat PLACE ARGUMENT...
boat() {
    local place=$1
    shift
    "$LIFEBOAT" -q --config-dir "$work/$place-config" --state-dir "$work/$place-state" "$@"
}

# set_up PLACE URL APP [ENDPOINT]: a repository, and a policy for APP/data.
set_up() {
    run_quietly boat "$1" init "$3" --name bench --repository "$2" ${4:+--endpoint "$4" --region us-east-1 --credentials env}
    printf '\n[[source]]\nkind = "files"\npaths = ["%s"]\n' "$3/data" >>"$work/$1-config/policies/bench.toml"
    sed -i 's/^\[repository\]/&\nmin_free = "1MiB"/' "$work/$1-config/policies/bench.toml"
}

lifeboat_one() { boat s3 restore latest --only files --path "$one" --into "$work/one/lifeboat"; }
restic_one() { restic -q restore latest --include "$one" --target "$work/one/restic"; }
rusty() { (cd "$work" && "$rustic" --log-level warn -P "$work/rustic" "$@"); }
rustic_one() { rusty restore "latest:$one" "$work/one/rustic"; }

for delay in 0 40; do
    least=() requests=() up=() down=() steps=()
    start_proxy "$delay"
    endpoint=http://127.0.0.1:$proxy_port
    rm -rf "$work"/s3-*
    set_up s3 "s3://bench/lifeboat-$delay" "$files/app" "$endpoint"
    measure lifeboat 'first snapshot' boat s3 snapshot
    export RESTIC_REPOSITORY=s3:$endpoint/bench/restic-$delay
    restic -q init
    measure restic 'first snapshot' restic -q backup "$files/app/data"
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
        run_quietly rusty init
        measure rustic 'first snapshot' rusty backup "$files/app/data"
    fi
    for _ in $(seq "$runs"); do
        rm -rf "$work/one"
        mkdir "$work/one"
        measure lifeboat unchanged boat s3 snapshot
        measure restic unchanged restic -q backup "$files/app/data"
        [ -z "$rustic" ] || measure rustic unchanged rusty backup "$files/app/data"
        measure lifeboat 'one file' lifeboat_one
        measure restic 'one file' restic_one
        [ -z "$rustic" ] || measure rustic 'one file' rustic_one
    done
    measure lifeboat 'all files' boat s3 restore latest --only files --into "$work/one/all"
    measure restic 'all files' restic -q restore latest --target "$work/one/restic-all"
    [ -z "$rustic" ] || measure rustic 'all files' rusty restore latest "$work/one/rustic-all"
    cmp "$one" "$work/one/lifeboat/files$one"
    printf '\n%s ms of added latency\n' "$delay"
    report
    for step in unchanged 'one file'; do
        ratio "$step" restic
        ratio "$step" rustic
    done
    kill "$proxy"
    wait "$proxy" 2>/dev/null || true
done

# cpu_ms PID: CPU time that a process has taken.
cpu_ms() { awk -v tick="$(getconf CLK_TCK)" '{ print int(($14 + $15) * 1000 / tick) }' "/proc/$1/stat"; }

# timed PLACE STEP COMMAND...: keeps the least time, with the CPU time of both sides.
timed() {
    local at="$1|$2" begun ended before after cpu TIMEFORMAT='%U %S'
    shift 2
    before=$(cpu_ms "$server")
    begun=$(now_ms)
    cpu=$({ time "$@" >"$work/out" 2>"$work/err"; } 2>&1) || {
        cat "$work/out" "$work/err" >&2
        die "failed: $*"
    }
    ended=$(now_ms)
    after=$(cpu_ms "$server")
    if [ -z "${least[$at]-}" ] || [ $((ended - begun)) -lt "${least[$at]}" ]; then
        least[$at]=$((ended - begun)) theirs[$at]=$((after - before))
        own[$at]=$(awk '{ print int(($1 + $2) * 1000) }' <<<"$cpu")
    fi
}

least=()
make_files "$files/large/data" "$large"
turns=$(((runs + 1) / 2))
for turn in $(seq "$turns"); do
    for place in folder server; do
        rm -rf "$work/$place-config" "$work/$place-state" "$work/back" "$work/repository" "$work/buckets/bench"/*
        if [ "$place" = folder ]; then
            set_up folder "$work/repository" "$files/large"
        else
            set_up server "s3://bench/large-$turn" "$files/large" "http://127.0.0.1:$server_port"
        fi
        timed "$place" 'first snapshot' boat "$place" snapshot
        timed "$place" 'all files' boat "$place" restore latest --only files --into "$work/back"
        diff -r "$files/large/data" "$work/back/files$files/large/data" >/dev/null || die "what was restored is not what was there"
    done
done
printf '\n%s MiB without a proxy: the least of %s turns\n' "$large" "$turns"
for step in 'first snapshot' 'all files'; do
    for place in folder server; do
        at="$place|$step"
        printf '%-15s %-7s %6s s, CPU time %6s s, and of the server %6s s\n' "$step" "$place" \
            "$(over "${least[$at]}" 1000)" "$(over "${own[$at]}" 1000)" "$(over "${theirs[$at]}" 1000)"
    done
    folder=${least["folder|$step"]} all=${least["server|$step"]}
    # On all cores at once the server's work would take so long by itself.
    alone=$((all - theirs["server|$step"] / $(nproc)))
    printf '%-15s to the server it takes %s of the time; without the CPU time of the server %s\n' "$step" \
        "$(over "$all" "$folder")" "$(over "$alone" "$folder")"
done
