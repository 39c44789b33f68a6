# shellcheck shell=bash disable=SC2154
# Sourced by ../engine.sh: a Redis on two days.

# start_redis NAME PORT: a server in the folder NAME, with what lies there in dump.rdb; it writes only when it is asked to, and lets no
# replica wait for others that might come: that is five seconds, for every tool.
start_redis() {
    local options=()
    mkdir -p "$work/$1"
    # DEBUG is forbidden from Redis 7 on, and may not be named before.
    ! redis-server --version | grep -qE ' v=([7-9]|[1-9][0-9])' || options=(--enable-debug-command local)
    redis-server --port "$2" --bind 127.0.0.1 --dir "$work/$1" --daemonize yes --pidfile "$work/$1/pid" --save '' \
        --appendonly no --rdbcompression yes --repl-diskless-sync-delay 0 --logfile "$work/$1/log" "${options[@]}" >/dev/null
    for _ in $(seq 600); do
        [ "$(redis-cli -p "$2" ping 2>/dev/null)" != PONG ] || return 0
        sleep 0.1
    done
    die "redis-server does not start: $(tail -n 5 "$work/$1/log")"
}

# stop_redis NAME: and its folder is gone. It has when nothing answers any more.
stop_redis() {
    local pid
    if [ -s "$work/$1/pid" ]; then
        pid=$(cat "$work/$1/pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 300); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    fi
    rm -rf "${work:?}/$1"
}

# redis_digest PORT: of all keys, types and values, in whatever order they lie.
redis_digest() { redis-cli -p "$1" debug digest; }

bench_redis() {
    need_root_or_have redis-server=redis-server redis-cli=redis-tools
    local round tool dump port
    port=$(shuf -i 35000-39999 -n 1)
    start_redis redis "$port"
    python3 "$workload" redis "$redis_mib" | redis-cli -p "$port" --pipe >/dev/null
    redis-cli -p "$port" save >/dev/null
    cp "$work/redis/dump.rdb" "$work/first-day.rdb"
    printf 'Redis with a dump of %s MiB\n' "$(du -m --apparent-size "$work/first-day.rdb" | cut -f1)"
    printf '[[source]]\nkind = "redis"\nurl = "redis://127.0.0.1:%s"\n' "$port" >"$work/source.toml"
    dump="redis-cli -p $port --rdb - 2>/dev/null"
    for round in $(seq "$runs"); do
        # The first day in a server that has just loaded it: equal in every round.
        cp "$work/first-day.rdb" "$work/redis/dump.rdb"
        [ "$(redis-cli -p "$port" debug reload nosave)" = OK ] || die 'the first day could not be loaded again'
        new_repositories
        for tool in $(turns "$round"); do measure first "$tool" "$(capture_stream "$tool" "$dump")"; done
        # A key of 170, anywhere in the dump.
        redis-cli -p "$port" eval 'for n = 1, ARGV[1] do redis.call("SET", "session:" .. n * 37, "changed " .. n) end' \
            0 $((redis_mib * 40 / 3)) >/dev/null
        for tool in $(turns "$round"); do measure second "$tool" "$(capture_stream "$tool" "$dump")"; done
        for tool in $(turns "$round"); do
            drop_restored
            measure restore "$tool" "$(restore_stream "$tool" redis)" "$work/repository/$tool"
            [ "$round" != "$runs" ] || same_redis "$tool"
            drop_restored
        done
    done
    rm -rf "$work/repository" "$work/first-day.rdb"
    stop_redis redis
    table Redis 'first day:first' 'second day:second' 'restore to a file:restore'
}

# same_redis TOOL: a server loads what it restored, and has what the live one has.
same_redis() {
    local again rdb live loaded
    again=$(shuf -i 40000-44999 -n 1)
    rdb=$(find "$work/restored" -type f \( -name dump.rdb -o -name dump \) | head -n 1)
    [ -n "$rdb" ] || die "$1 restored no dump of the Redis"
    mkdir -p "$work/again"
    mv "$rdb" "$work/again/dump.rdb"
    start_redis again "$again"
    live=$(redis_digest "$port")
    loaded=$(redis_digest "$again")
    stop_redis again
    [[ $live =~ ^[0-9a-f]{40}$ && $live =~ [1-9a-f] ]] || die "the live Redis has no digest: $live"
    [ "$live" = "$loaded" ] || die "$1 restored another Redis: $loaded instead of $live"
}
