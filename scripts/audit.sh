#!/usr/bin/env bash
# audit.sh: licences, banned crates and sources of every dependency, and known vulnerabilities where the database of
# advisories can be reached. Needs cargo-deny.
set -euo pipefail
exec </dev/null
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$LIFEBOAT_SRC"

need_rust
cargo deny --version >/dev/null 2>&1 || die "cargo-deny is missing: run \"cargo install cargo-deny --locked\""

echo "${BOLD}== licences, bans, sources${PLAIN}"
cargo deny --locked --log-level warn check --hide-inclusion-graph licenses bans sources

echo "${BOLD}== advisories${PLAIN}"
if timeout 120 cargo deny --locked fetch db >/dev/null 2>&1; then
    cargo deny --locked --log-level warn check --disable-fetch advisories
elif [ -n "$(find "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" -name '*.md' -print -quit 2>/dev/null)" ]; then
    echo "the database of advisories cannot be reached; checking against the copy fetched earlier"
    cargo deny --locked --offline --log-level warn check --disable-fetch advisories
else
    echo "${RED}not checked: the database of advisories cannot be reached${PLAIN}"
fi
