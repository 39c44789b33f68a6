# shellcheck shell=bash disable=SC2154
# Sourced by ../engine.sh: taking turns, and measuring one command of one tool.

# turns ROUND: who takes part; each round another one begins.
turns() {
    local tools
    read -ra tools <<<"$taking_part"
    local first=$((($1 - 1) % ${#tools[@]}))
    printf '%s\n' "${tools[@]:first}" "${tools[@]:0:first}"
}

# warm PATH...: what a step is going to read lies in the page cache, whoever begins, and however it was written.
warm() { [ $# = 0 ] || find "$@" -type f -print0 | xargs -0 -r cat -- >/dev/null; }

stored() { du -sb "$work/repository/$1" 2>/dev/null | cut -f1 || echo 0; }

# measure STEP TOOL COMMAND [READ...]: wall, CPU and peak memory of a shell command that has the variables of ../engine.sh, what
# it stored and what is stored in all, in KiB. READ is what it reads, warmed before.
measure() {
    local step=$1 tool=$2 command=$3 before after
    shift 3
    sync
    warm "$@"
    before=$(stored "$tool")
    /usr/bin/time -f '%e %U %S %M' -o "$work/time" bash -o pipefail -c "$command" >"$work/out" 2>"$work/err" || {
        tail -n 20 "$work/err" "$work/out" >&2
        die "$what: $step by $tool failed"
    }
    after=$(stored "$tool")
    printf '%s %s %s %s %s\n' "$step" "$tool" "$(tail -n 1 "$work/time")" $(((after - before) / 1024)) $((after / 1024)) \
        >>"$work/times/$what"
}

# table NAME LABEL:STEP...: of the part that ran.
table() { python3 "$here/engine/report.py" table "$work/times/$what" "$@"; }
