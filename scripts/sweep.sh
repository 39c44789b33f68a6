#!/usr/bin/env bash
# sweep.sh [NAME...]: the whole sweeps, of which scripts/test.sh runs a thinned part: a kill behind every line of a journal,
# a restart of the Docker engine at every step, faults at the system calls of the engine, mutated files for every parser.
# They take long: run them before a release, and after a change of what they are about. Without names all of them, one
# after the other; the count of cases that each has printed, and its time.
#
# RELEASE=yes        of a release build (default: the tests' own build)
# SWEEP_LIMIT=3600   seconds that one sweep may take
#
# A sweep is one line of the table below: its name, the test binary (or the library's own tests), the test. The test does all when LIFEBOAT_SWEEP is set.
set -euo pipefail
exec </dev/null
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$LIFEBOAT_SRC"

sweeps=(
    'journal    rollback  crash::killed_behind_every_line_of_the_journal'
    'steps      rollback  crash::killed_in_the_middle_of_every_step'
    'engine     rollback  restart::the_engine_dies_and_starts_nothing_by_itself'
    'engine-up  rollback  restart::the_engine_dies_and_starts_again_what_ran'
    'restore    inplace   crash::'
    'killed     inplace   killed::sweep_of_a_restore'
    'undone     inplace   killed::sweep_of_its_undo'
    'snapshot   faults    sweep_of_a_snapshot'
    'restores   faults    sweep_of_a_restore'
    'prune      faults    sweep_of_a_prune'
    'index      faults    sweep_of_an_index_repair'
    'inplace    faults    inplace::'
    'power      faults    power::'
    'limits     faults    limits::'
    'short      faults    short::'
    'readonly   faults    readonly::'
    'lost       faults    lost::'
    'servers    faults    servers::'
    'verify     faults    verify::'
    'prune-kill prune     killed_at_any_step'
    'kill       crash     the_command_killed'
    'copy       copy      killed_at_any_put'
    'race       hostile   race::'
    'bombs      hostile   bombs::'
    'parsers    lib       sweep_'
)

need_rust
need_packages build test
need_docker
need_compose
need_image

profile=()
[ "${RELEASE-}" != yes ] || profile=(--release)
export LIFEBOAT_SWEEP=1
failed=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# wanted NAME NAMES...: whether it is one of them, or all are meant.
wanted() {
    local name=$1 other
    shift
    [ $# -gt 0 ] || return 0
    for other in "$@"; do [ "$name" != "$other" ] || return 0; done
    return 1
}

for line in "${sweeps[@]}"; do
    read -r name binary test <<<"$line"
    wanted "$name" "$@" || continue
    began=$(now_ms)
    status=0
    target=(--test "$binary")
    [ "$binary" != lib ] || target=(--lib)
    cargo test --locked --quiet "${profile[@]}" "${target[@]}" --no-run >"$log" 2>&1 || status=$?
    [ "$status" != 0 ] || timeout -k 20 "${SWEEP_LIMIT:-3600}" cargo test --locked --quiet "${profile[@]}" "${target[@]}" -- \
        --nocapture --test-threads 1 "$test" >"$log" 2>&1 || status=$?
    counts=$(grep -E '^[0-9]+ cases|^cases of|: [0-9]+ pending' "$log" | tr '\n' ';' | sed 's/;$//; s/;/; /g' || true)
    # A name that no test has any more sweeps nothing.
    ran=$(sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed.*/\1 \2/p' "$log" | awk '{ n += $1 + $2 } END { print n + 0 }')
    [ "$ran" -gt 0 ] || status=1
    if [ "$status" = 0 ]; then
        printf '%-10s %s (%s)\n' "$name" "${counts:-no counts}" "$(seconds_since "$began")"
    else
        failed+=("$name")
        tail -n 40 "$log" >&2
        printf '%-10s %s\n' "$name" "${RED}failed after $(seconds_since "$began")${PLAIN}"
    fi
done
[ ${#failed[@]} = 0 ] || die "failed: ${failed[*]}"
