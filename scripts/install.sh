#!/usr/bin/env bash
# install.sh: puts Lifeboat on this machine: the program, its manual pages and completions, the units of systemd. It
# starts nothing. Run again it replaces what it put there; keys, policies, state and repositories are never touched.
#
#   install.sh [--binary FILE] [--prefix DIR]   the program of this checkout, built where it is not yet
#   install.sh --deb FILE                       a Debian package, by apt
#   install.sh --uninstall [--prefix DIR]       away again
#
# As root the prefix is /usr/local; as an ordinary user ~/.local, with the unit for a user's own service.
# DESTDIR=DIR puts all of it below another root.
set -euo pipefail
exec </dev/null
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
}

binary='' deb='' uninstall='' prefix=''
while [ $# -gt 0 ]; do
    case $1 in
    --binary | --deb | --prefix)
        [ $# -ge 2 ] || usage
        declare "${1#--}=$2"
        shift
        ;;
    --uninstall) uninstall=yes ;;
    *) usage ;;
    esac
    shift
done

is_root=''
[ "$(id -u)" != 0 ] || is_root=yes
DESTDIR=${DESTDIR-}
[ -n "$prefix" ] || prefix=$([ -n "$is_root" ] && echo /usr/local || echo "$HOME/.local")
case $prefix in
/*) prefix=${prefix%/} ;;
*) die "--prefix is a whole path: $prefix" ;;
esac
root=$DESTDIR$prefix

# Of whom systemd is to be told: nobody for another root or without systemd.
systemd() {
    [ -z "$DESTDIR" ] && [ -d /run/systemd/system ] || return 0
    if [ -n "$is_root" ]; then systemctl "$@"; else systemctl --user "$@"; fi
}

# Where each thing goes; what is removed is the same list.
bash_file=$root/share/bash-completion/completions/lifeboat
zsh_file=$root/share/zsh/site-functions/_lifeboat
fish_file=$root/share/fish/vendor_completions.d/lifeboat.fish
man_dir=$root/share/man/man1
break_glass=$root/share/lifeboat/break-glass.sh
if [ -n "$is_root" ]; then
    unit_dir=$root/lib/systemd/system user_unit_dir=$root/lib/systemd/user
else
    unit_dir='' user_unit_dir=$root/share/systemd/user
fi

by_package() {
    command -v dpkg-query >/dev/null && [ -z "$DESTDIR" ] &&
        [ "$(dpkg-query --show --showformat='${db:Status-Status}' lifeboat 2>/dev/null)" = installed ]
}

remove() {
    rm -f "$root/bin/lifeboat" "$man_dir"/lifeboat.1 "$man_dir"/lifeboat-*.1 "$bash_file" "$zsh_file" "$fish_file" \
        "$break_glass" "$user_unit_dir/lifeboat.service"
    [ -z "$unit_dir" ] || rm -f "$unit_dir"/lifeboat.service "$unit_dir"/lifeboat-snapshot@.{service,timer}
    rmdir "$root/share/lifeboat" 2>/dev/null || true
}

if [ -n "$uninstall" ]; then
    if by_package; then
        die "Lifeboat is here as a package: apt-get remove lifeboat"
    fi
    [ -e "$root/bin/lifeboat" ] || die "there is no Lifeboat in $root"
    systemd disable --now lifeboat.service >/dev/null 2>&1 || true
    remove
    systemd daemon-reload || true
    echo "removed from $root; keys, policies, state and repositories stay where they are"
    exit 0
fi

if [ -n "$deb" ]; then
    [ -z "$DESTDIR" ] || die "--deb goes to this machine: leave DESTDIR away (dpkg --root installs elsewhere)"
    [ -r "$deb" ] || die "cannot read the package $deb"
    command -v apt-get >/dev/null || die "apt-get is missing: a package goes to a Debian machine"
    [ -n "$is_root" ] || die "a package is installed by root: sudo apt-get install $(realpath "$deb")"
    apt_quietly install -y --no-install-recommends "$(realpath "$deb")" || die "could not install $deb; see above"
    echo "installed: $(lifeboat --version)"
    exit 0
fi

if by_package; then
    die "Lifeboat is here as a package: upgrade that (install.sh --deb FILE), or remove it first"
fi
if [ -z "$binary" ]; then
    binary=$CARGO_TARGET_DIR/release/lifeboat
    need_rust
    need_packages build
    (cd "$LIFEBOAT_SRC" && cargo build --release --locked --quiet) || die "could not build; see above"
fi
[ -x "$binary" ] || die "there is no program $binary"
version=$("$binary" --version) || die "$binary does not run on this machine"
mkdir -p "$root" 2>/dev/null || true
[ -w "$root" ] || die "cannot write to $root: run it as root, or name another --prefix"

staged=$(mktemp -d)
trap 'rm -rf "$staged"' EXIT
"$binary" man --into "$staged/man"
for shell in bash zsh fish; do "$binary" completions "$shell" >"$staged/$shell"; done
# Pages and units of an older version that this one has no more.
remove
# Beside, and renamed: one that runs keeps its own.
install -D -m 755 "$binary" "$root/bin/.lifeboat.new"
mv "$root/bin/.lifeboat.new" "$root/bin/lifeboat"
install -d "$man_dir"
install -m 644 "$staged"/man/*.1 "$man_dir"
install -D -m 644 "$staged/bash" "$bash_file"
install -D -m 644 "$staged/zsh" "$zsh_file"
install -D -m 644 "$staged/fish" "$fish_file"
install -D -m 755 "$LIFEBOAT_SRC/scripts/break-glass.sh" "$break_glass"

# unit FILE DIR: a unit that starts the program where it is now.
unit() {
    sed "s,/usr/bin/lifeboat,$prefix/bin/lifeboat," "$LIFEBOAT_SRC/systemd/$1" >"$staged/unit"
    install -D -m 644 "$staged/unit" "$2/$(basename "$1")"
}
unit user/lifeboat.service "$user_unit_dir"
if [ -n "$unit_dir" ]; then
    for file in lifeboat.service lifeboat-snapshot@.service lifeboat-snapshot@.timer; do unit "$file" "$unit_dir"; done
    for dir in /etc/lifeboat /etc/lifeboat/policies /var/lib/lifeboat; do
        [ -d "$DESTDIR$dir" ] || install -d -m 700 "$DESTDIR$dir"
    done
fi
systemd daemon-reload || true

echo "installed: $version in $root/bin"
case :$PATH: in
*:"$prefix/bin":*) ;;
*) echo "$prefix/bin is not in your PATH: add it, or call the program by its whole name" ;;
esac
echo "Next: lifeboat init DIR"
