# shellcheck shell=bash disable=SC2154,SC2016
# Sourced by ../engine.sh: what each tool is called with. Commands are made as text; the shell that runs them has WORK, LIFEBOAT
# and AGE, and the passwords of the repositories.

boat='"$LIFEBOAT" --config-dir "$WORK/boat/config" --state-dir "$WORK/boat/state" -q'
# The newest of each: of borg's archives, bupstash's items and the pipe's files.
newest_borg='"$WORK/repository/borg::$(borg list --last 1 --short "$WORK/repository/borg")"'
newest_bupstash='"id=$(bupstash list -q -r "$WORK/repository/bupstash" --format jsonl1 | tail -n 1 | jq -r .id)"'
newest_pipe='"$(ls -d "$WORK"/repository/pipe/* | tail -n 1)"'

tools_keys() {
    export RESTIC_PASSWORD=bench RUSTIC_PASSWORD=bench BORG_PASSPHRASE=bench
    # Caches and what a tool knows of its repositories: all of it below $work/cache.
    export BORG_BASE_DIR=$work/cache/borg RESTIC_CACHE_DIR=$work/cache/restic BUPSTASH_KEY=$work/bupstash.key
    age-keygen -o "$work/age.key" 2>/dev/null
    AGE=$(age-keygen -y "$work/age.key")
    export AGE
    ! command -v bupstash >/dev/null || bupstash new-key -o "$work/bupstash.key"
}

# new_repositories: an empty one for each, and no tool remembers the last. Lifeboat's source is what source.toml says.
new_repositories() {
    rm -rf "${work:?}"/{repository,cache,home,boat}
    mkdir -p "$work/repository" "$work/cache" "$work/home"
    local tool
    for tool in $taking_part; do
        case $tool in
        lifeboat) new_lifeboat ;;
        restic) restic -q -r "$work/repository/restic" init >/dev/null ;;
        rustic) rustic --no-progress -r "$work/repository/rustic" init >/dev/null 2>&1 ;;
        borg) borg init -e repokey-blake2 "$work/repository/borg" 2>/dev/null ;;
        bupstash) bupstash init -r "$work/repository/bupstash" >/dev/null ;;
        pipe) mkdir -p "$work/repository/pipe" ;;
        esac
    done
}
new_lifeboat() {
    local kind
    mkdir -p "$work/app"
    "$LIFEBOAT" --config-dir "$work/boat/config" --state-dir "$work/boat/state" -q init "$work/app" --name bench \
        --repository "$work/repository/lifeboat" >"$work/log" 2>&1 || die "$(cat "$work/log")"
    {
        printf '[app]\nname = "bench"\nroot = "%s"\n\n[repository]\nurl = "%s"\nmin_free = "1MiB"\n' "$work/app" "$work/repository/lifeboat"
        printf 'recipients = ["%s"]\n' "$(sed -n 's/^# recipient: //p' "$work/boat/config/identity.txt")"
        for kind in env git compose; do printf '[[source]]\nkind = "%s"\nenabled = false\n' "$kind"; done
        cat "$work/source.toml"
    } >"$work/boat/config/policies/bench.toml"
}

# The folder `files`.
capture_files() {
    case $1 in
    lifeboat) echo "$boat snapshot" ;;
    restic) echo 'restic -q -r "$WORK/repository/restic" backup "$WORK/files"' ;;
    rustic) echo 'rustic --no-progress -r "$WORK/repository/rustic" backup "$WORK/files"' ;;
    borg) echo 'borg create --compression zstd,3 "$WORK/repository/borg::{now:%s.%f}" "$WORK/files"' ;;
    bupstash) echo 'bupstash put -q -r "$WORK/repository/bupstash" --compression zstd:3 --send-log "$WORK/cache/bupstash.sendlog" name=files "$WORK/files"' ;;
    pipe) echo 'tar -C "$WORK" -cf - files | zstd -q -3 -T2 | age -r "$AGE" >"$WORK/repository/pipe/$(date +%s%N)"' ;;
    esac
}
restore_files() {
    case $1 in
    lifeboat) echo "$boat restore latest --only files --into \"\$WORK/restored\"" ;;
    restic) echo 'restic -q -r "$WORK/repository/restic" restore latest --target "$WORK/restored"' ;;
    rustic) echo 'rustic --no-progress -r "$WORK/repository/rustic" restore latest "$WORK/restored"' ;;
    borg) echo "mkdir \"\$WORK/restored\" && cd \"\$WORK/restored\" && borg extract $newest_borg" ;;
    bupstash) echo "mkdir \"\$WORK/restored\" && $(read_stream bupstash) | tar -C \"\$WORK/restored\" -xpf -" ;;
    pipe) echo "mkdir \"\$WORK/restored\" && $(read_stream pipe) | tar -C \"\$WORK/restored\" -xpf -" ;;
    esac
}

# capture_stream TOOL COMMAND: what the command writes; Lifeboat's source knows it itself.
capture_stream() {
    case $1 in
    lifeboat) echo "$boat snapshot" ;;
    restic) echo "$2"' | restic -q -r "$WORK/repository/restic" backup --stdin --stdin-filename dump' ;;
    rustic) echo "$2"' | rustic --no-progress -r "$WORK/repository/rustic" backup --force --stdin-filename dump -' ;;
    borg) echo "$2"' | borg create --compression zstd,3 "$WORK/repository/borg::{now:%s.%f}" -' ;;
    bupstash) echo "$2"' | bupstash put -q -r "$WORK/repository/bupstash" --compression zstd:3 name=dump -' ;;
    pipe) echo "$2"' | zstd -q -3 -T2 | age -r "$AGE" >"$WORK/repository/pipe/$(date +%s%N)"' ;;
    esac
}
# read_stream TOOL [NAME]: the newest, to standard output. NAME is Lifeboat's source and stream.
read_stream() {
    case $1 in
    lifeboat) echo "$boat cat latest $2" ;;
    restic) echo 'restic -q -r "$WORK/repository/restic" dump latest /dump' ;;
    rustic) echo 'rustic --no-progress -r "$WORK/repository/rustic" dump latest:dump' ;;
    borg) echo "borg extract --stdout $newest_borg" ;;
    bupstash) echo "bupstash get -q -r \"\$WORK/repository/bupstash\" $newest_bupstash" ;;
    pipe) echo "age -d -i \"\$WORK/age.key\" $newest_pipe | zstd -dcq" ;;
    esac
}
# restore_stream TOOL SOURCE: the newest, into files below `restored`, and on the disk: Lifeboat ends with a syncfs itself.
restore_stream() {
    case $1 in
    lifeboat) echo "$boat restore latest --only $2 --into \"\$WORK/restored\"" ;;
    *) echo "mkdir \"\$WORK/restored\" && $(read_stream "$1") >\"\$WORK/restored/dump\" && sync -f \"\$WORK/restored\"" ;;
    esac
}
drop_restored() { rm -rf "$work/restored"; sync; }

check_all() {
    case $1 in
    lifeboat) echo "$boat verify --deep" ;;
    restic) echo 'restic -q -r "$WORK/repository/restic" check --read-data' ;;
    rustic) echo 'rustic --no-progress -r "$WORK/repository/rustic" check --read-data' ;;
    borg) echo 'borg check --verify-data "$WORK/repository/borg"' ;;
    # These two have no check: the newest is read.
    bupstash | pipe) echo "$(read_stream "$1") >/dev/null" ;;
    esac
}
