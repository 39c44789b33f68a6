# shellcheck shell=bash disable=SC2154
# Sourced by ../engine.sh: a tree of mixed files, and one of very many small ones.

bench_files() {
    printf 'making the files ...\n'
    python3 "$workload" make "$work/files" "$files_mib"
    printf '%s MiB in %s files\n' "$(du -sm --apparent-size "$work/files" | cut -f1)" "$(find "$work/files" -type f | wc -l)"
    tree_rounds changed
    table files 'first snapshot:first' 'unchanged:unchanged' 'after 1 %:changed' 'restore:restore' 'deep check:check'
}

bench_million() {
    local taking_part=$taking_part runs=${RUNS:-1}
    [ -n "${TOOLS-}" ] || taking_part=lifeboat
    printf 'making %s small files ...\n' "$million"
    python3 "$workload" million "$work/files" "$million"
    tree_rounds
    table "$million small files" 'first snapshot:first' 'unchanged:unchanged' 'restore:restore' 'deep check:check'
}

# tree_rounds [changed]: all steps with the folder `files`, which is gone afterwards. The pipe knows no unchanged files.
tree_rounds() {
    local round tool
    printf '[[source]]\nkind = "files"\npaths = ["%s"]\n' "$work/files" >"$work/source.toml"
    # Times of the files must lie behind the first run, or it would not remember them.
    sleep 3
    for round in $(seq "$runs"); do
        new_repositories
        for tool in $(turns "$round"); do measure first "$tool" "$(capture_files "$tool")" "$work/files"; done
        for tool in $(turns "$round"); do
            [ "$tool" = pipe ] || measure unchanged "$tool" "$(capture_files "$tool")" "$work/files"
        done
        if [ -n "${1-}" ]; then
            python3 "$workload" change "$work/files" "$work/saved"
            sleep 3
            for tool in $(turns "$round"); do measure changed "$tool" "$(capture_files "$tool")" "$work/files"; done
        fi
        for tool in $(turns "$round"); do
            measure restore "$tool" "$(restore_files "$tool")" "$work/repository/$tool"
            [ "$round" != 1 ] || same_tree "$tool"
            empty_restored "$round.$tool"
        done
        for tool in $(turns "$round"); do measure check "$tool" "$(check_all "$tool")" "$work/repository/$tool"; done
        [ -z "${1-}" ] || { python3 "$workload" undo "$work/files" "$work/saved" && sleep 3; }
    done
    rm -rf "$work/repository" "$work/files"
}

# empty_restored NAME: its room is given back, its inodes are kept until the run is over. ext4 gives none away again within some
# minutes of its removal, and passes all of those by for each file that is made: a restore behind a removed tree would take
# three times as long, and measure that.
empty_restored() {
    mkdir -p "$work/emptied"
    find "$work/restored" -type f -exec truncate -s 0 -- {} +
    mv "$work/restored" "$work/emptied/$1"
    sync
}

# same_tree TOOL: what it restored is what was captured; Lifeboat's must agree in all, another's in every byte.
same_tree() {
    local at
    at=$(find "$work/restored" -maxdepth 12 -type d -path '*/empty/folder' | head -n 1)
    [ -n "$at" ] || die "$1 restored no folder files"
    at=${at%/empty/folder}
    diff -rq --no-dereference "$work/files" "$at" || die "$1 restored other bytes"
    python3 "$workload" compare "$work/files" "$at" || {
        [ "$1" != lifeboat ] || die "lifeboat restored other metadata"
        printf '%s does not restore all metadata\n' "$1"
    }
}
