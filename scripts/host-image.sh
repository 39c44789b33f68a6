#!/usr/bin/env bash
# host-image.sh IMAGE: a small Docker image made of this machine's own Postgres, Redis, nginx, git, Python and shell, so
# that the tests' containers need no registry. Root; the programs must be installed.
set -euo pipefail

image=${1:?usage: host-image.sh IMAGE}
postgres=/usr/lib/postgresql/15
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

programs=(bash sh cat ls cp mv rm mkdir rmdir chown chmod sleep date id env head tail tee true false touch ln stat du
    df sync kill ps sed grep tar gzip zstd find sort wc cut tr test timeout sha256sum su setpriv getent locale mktemp
    readlink basename dirname printf seq dd od cmp diff hostname uname xargs awk)
servers=(/usr/bin/redis-{server,cli,check-rdb,check-aof} /usr/sbin/nginx /usr/bin/{git,curl,openssl,python3.11})
python=/usr/lib/python3.11
# What a small web application never loads, by the first letters of its path below $python.
useless='config-3|test|unittest|lib2to3|ensurepip|idlelib|distutils|pydoc|turtle|xml|wsgiref|venv|curses|sqlite3|asyncio'
useless+='|multiprocessing|lib-dynload/(_sqlite|_curses|_dbm|nis|_test|_codecs|readline)'

# The folders that Debian merged into /usr, and those that the servers expect.
mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{tmp,run/postgresql,proc,sys,dev,root,etc,var/www,var/log/nginx} \
    "$root"/var/lib/{postgresql,redis,nginx}
for dir in bin sbin lib lib64; do ln -s "usr/$dir" "$root/$dir"; done
chmod 1777 "$root/tmp"

{
    for program in "${programs[@]}"; do type -P "/usr/bin/$program" || type -P "/bin/$program" || true; done
    for server in "${servers[@]}"; do [ -x "$server" ] && echo "$server"; done
    # Without the bitcode and the compiler of Postgres' JIT, which are ten times the rest.
    find "$postgres" /usr/share/postgresql/15 \( -type f -o -type l \) \
        ! -path '*bitcode*' ! -name 'llvmjit*' ! -path '*/pgxs/*'
    # nginx's loadable modules are this machine's choice, not the image's.
    find /etc/nginx /usr/lib/locale/C.utf8 /usr/share/git-core /usr/share/zoneinfo/UTC \
        /etc/ssl/certs/ca-certificates.crt /etc/ssl/openssl.cnf /etc/nsswitch.conf \
        \( -type f -o -type l \) ! -path '*/modules-enabled/*' 2>/dev/null
    find "$python" \( -type f -o -type l \) | grep -vE "^$python/((__pycache__/)?($useless)|.*/_pydecimal)"
} | sort -u >"$root/files" || true

# Every library that one of them loads.
grep -E "^(/usr/bin|/bin|/usr/sbin|$postgres|$python/lib-dynload)/" "$root/files" | xargs ldd 2>/dev/null |
    grep -oE '/[^ ]+\.so[^ ]*' | grep -E '^/(usr/)?lib' | sort -u >"$root/libraries" || true

# Links are followed: a name and its target become two files, and nothing points outside.
sort -u "$root/files" "$root/libraries" | sed 's,^/,,' >"$root/list"
tar -C / -ch --no-recursion --ignore-failed-read -T "$root/list" 2>/dev/null |
    tar -C "$root" -x --keep-directory-symlink
rm -f "$root"/{files,libraries,list}
ln -s python3.11 "$root/usr/bin/python3"

# The uids of the official alpine images, so that restored ownership means the same.
cat >"$root/etc/passwd" <<'PASSWD'
root:x:0:0:root:/root:/bin/sh
postgres:x:70:70::/var/lib/postgresql:/bin/sh
redis:x:71:71::/var/lib/redis:/bin/sh
www-data:x:33:33::/var/www:/bin/sh
nobody:x:65534:65534::/:/bin/false
PASSWD
cat >"$root/etc/group" <<'GROUP'
root:x:0:
postgres:x:70:
redis:x:71:
www-data:x:33:
nogroup:x:65534:
GROUP
chown -R 70:70 "$root/var/lib/postgresql" "$root/run/postgresql"
chown 71:71 "$root/var/lib/redis"

tar -C "$root" -c . | docker import \
    -c 'ENV LANG=C.UTF-8' \
    -c "ENV PATH=$postgres/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    - "$image" >/dev/null
