# shellcheck shell=bash disable=SC2154
# Sourced by ../engine.sh: one very long stream, which is not stored anywhere but in the repository.

bench_stream() {
    local taking_part=$taking_part runs=${RUNS:-1} round tool dump
    [ -n "${TOOLS-}" ] || taking_part=lifeboat
    printf 'one stream of %s GiB\n' "$stream_gib"
    cat >"$work/source.toml" <<TOML
[[source]]
kind = "command"
name = "stream"
run = ["$(command -v python3)", "$workload", "stream", "$stream_gib"]
output = "stream.bin"
timeout = "6h"
TOML
    dump="python3 '$workload' stream $stream_gib"
    for round in $(seq "$runs"); do
        new_repositories
        for tool in $(turns "$round"); do measure first "$tool" "$(capture_stream "$tool" "$dump")"; done
        for tool in $(turns "$round"); do
            [ "$tool" = pipe ] || measure unchanged "$tool" "$(capture_stream "$tool" "$dump")"
        done
        for tool in $(turns "$round"); do measure check "$tool" "$(check_all "$tool")"; done
        [ "$round" = "$runs" ] || continue
        for tool in $(turns "$round"); do
            bash -o pipefail -c "$(read_stream "$tool" stream:stream.bin)" 2>"$work/err" | cmp - <(python3 "$workload" stream "$stream_gib") ||
                die "$tool gave another stream: $(tail -n 5 "$work/err")"
        done
    done
    rm -rf "$work/repository"
    table "a stream of $stream_gib GiB" 'first snapshot:first' 'unchanged:unchanged' 'deep check:check'
}
