#!/usr/bin/env bash
# test.sh [FILTER]: everything that must pass before a change is merged. Installs and starts what the tests need where
# it may (as root on Debian 12). With a filter: only the tests whose name contains it.
set -euo pipefail
exec </dev/null
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$LIFEBOAT_SRC"

started=$(now_ms)
failed=()

# step NAME COMMAND...: runs it under a heading with its time; a failure is remembered and the next step runs.
step() {
    local name=$1 began status=0
    shift
    began=$(now_ms)
    printf '%s\n' "${BOLD}== $name${PLAIN}"
    "$@" || status=$?
    if [ "$status" = 0 ]; then
        printf '%s\n' "${DIM}   $(seconds_since "$began")${PLAIN}"
    else
        failed+=("$name")
        printf '%s\n' "${RED}   failed after $(seconds_since "$began")${PLAIN}"
    fi
    return 0
}

finish() {
    if [ ${#failed[@]} -gt 0 ]; then
        local list
        list=$(printf ', %s' "${failed[@]}")
        die "failed: ${list:2} ($(seconds_since "$started"))"
    fi
    printf '%s\n' "${GREEN}all passed in $(seconds_since "$started")${PLAIN}"
}

machine() {
    need_rust
    cargo fmt --version >/dev/null 2>&1 || die "rustfmt is missing: run \"rustup component add rustfmt\""
    cargo clippy --version >/dev/null 2>&1 || die "clippy is missing: run \"rustup component add clippy\""
    need_packages build test
    need_docker
    need_compose
    need_image
    need_rabbitmq
    need_s3_servers
    need_redis_versions
    need_postgres_16
    need_debian
    need_cargo_deb
    need_promtool
    printf '   %s, Docker %s, Postgres %s, Redis %s\n' "$(cargo --version | cut -d' ' -f1,2)" \
        "$(docker version --format '{{.Server.Version}}')" \
        "$(/usr/lib/postgresql/15/bin/postgres --version | cut -d' ' -f3)" \
        "$(redis-server --version | sed -E 's/.* v=([^ ]+).*/\1/')"
}

shell_scripts() {
    local script files=(scripts/*.sh scripts/bench/*.sh scripts/bench/*/*.sh packaging/debian/* .ci/run)
    for script in "${files[@]}"; do bash -n "$script" || return 1; done
    if command -v shellcheck >/dev/null; then
        shellcheck "${files[@]}"
    else
        echo "   syntax only: shellcheck is not installed"
    fi
}

build_tests() {
    if [ "$runner" = nextest ]; then
        cargo nextest run --locked --no-run --cargo-quiet
    else
        cargo test --locked --quiet --all-targets --no-run
    fi
}

run_tests() {
    if [ "$runner" = nextest ]; then
        cargo nextest run --locked "$@"
    else
        cargo test --locked --all-targets --no-fail-fast -- "$@"
    fi
}

runner="test"
cargo nextest --version >/dev/null 2>&1 && runner=nextest

step machine machine
step scripts shell_scripts
step rustfmt cargo fmt --check
step clippy cargo clippy --quiet --all-targets --locked -- -D warnings
step build build_tests
case " ${failed[*]-} " in
*" build "*) finish ;;
esac
step "tests (cargo $runner)" run_tests "$@"
[ $# -gt 0 ] || step "doc tests" cargo test --quiet --locked --doc
finish
