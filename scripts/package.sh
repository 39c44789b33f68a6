#!/usr/bin/env bash
# package.sh [--debug] [--image NAME]: a Debian package of this checkout: the program, its manual pages and completions, the
# units of systemd, break-glass.sh and the documents. Prints where it is. With --image also a container image of it
# (packaging/Dockerfile; LIFEBOAT_BASE names another base than debian:13-slim). With --debug of the program that cargo build
# has left, for a look at the package.
set -euo pipefail
exec </dev/null
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$LIFEBOAT_SRC"

profile=release
image=''
while [ $# -gt 0 ]; do
    case $1 in
    --debug) profile=debug ;;
    --image)
        [ $# -ge 2 ] || die "usage: package.sh [--debug] [--image NAME]"
        image=$2
        shift
        ;;
    *) die "usage: package.sh [--debug] [--image NAME]" ;;
    esac
    shift
done

need_rust
need_cargo_deb
need_root_or_have dpkg-shlibdeps=dpkg-dev strip=binutils
[ "$profile" = debug ] || cargo build --release --locked --quiet
program=$CARGO_TARGET_DIR/$profile/lifeboat
[ -x "$program" ] || die "there is no $program: run \"cargo build\""

options=(--no-build --locked --quiet --no-strip)
if [ "$profile" = debug ]; then
    # With its symbols it is ten times as large.
    target=$CARGO_TARGET_DIR/package
    mkdir -p "$target/debug"
    strip -o "$target/debug/lifeboat" "$program"
    options+=(--profile dev --fast)
    export CARGO_TARGET_DIR=$target
fi
staged=$CARGO_TARGET_DIR/$profile/package
rm -rf "$staged"
mkdir -p "$staged"
"$program" man --into "$staged/man"
gzip -9 --no-name "$staged"/man/*.1
for shell in bash zsh fish; do "$program" completions "$shell" >"$staged/lifeboat.$shell"; done
deb=$("$LIFEBOAT_TOOLS/bin/cargo-deb" "${options[@]}")
printf '%s\n' "$deb"

[ -n "$image" ] || exit 0
need_docker
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp "$deb" "$context/lifeboat.deb"
docker build --quiet --file packaging/Dockerfile --tag "$image" \
    ${LIFEBOAT_BASE:+--build-arg "BASE=$LIFEBOAT_BASE"} "$context" >/dev/null
printf '%s\n' "$image"
