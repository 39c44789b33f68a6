#!/usr/bin/env bash
# break-glass.sh: lists a Lifeboat repository and restores a whole snapshot without Lifeboat: age, zstd, GNU tar,
# ssh-keygen, jq and what every system has (coreutils, find, sed, awk) suffice. docs/format.md explains every step that it takes.
#
#   break-glass.sh list    REPO [--identity FILE | --signer SHA256:…]
#   break-glass.sh restore REPO SNAPSHOT --identity FILE --into DIR [--signer SHA256:…] [--scratch DIR]
#
# SNAPSHOT is an id, a unique beginning of one, a tag, or "latest". The repository is believed when its root key is the
# one that --signer names, or else the comment "# repository: SHA256:…" of the identity file.
# The scratch folder (default: within the destination) takes the plain size of the snapshot's archives for a while.
#
# Exit status: 0 done, 1 failed, 2 usage, 4 something stored is damaged or forged (what else there is, is restored).
# shellcheck disable=SC2016 # what looks like the shell's variables are jq's
set -euo pipefail
umask 077
export LC_ALL=C

usage() {
    sed -n '2,/^# Exit/{s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}
fail() {
    printf 'break-glass: %s\n' "$*" >&2
    exit 1
}
damaged() {
    printf 'break-glass: %s\n' "$*" >&2
    exit 4
}
note() { printf 'break-glass: %s\n' "$*" >&2; }

for tool in age zstd tar ssh-keygen jq sha256sum od; do
    command -v "$tool" >/dev/null || fail "$tool is missing (Debian: apt-get install age zstd tar openssh-client jq coreutils)"
done

# --- arguments -------------------------------------------------------------------------------------------------------

command=${1-}
shift || usage
words=()
identity='' into='' signer='' scratch=''
while [ $# -gt 0 ]; do
    case $1 in
    --identity | --into | --signer | --scratch)
        [ $# -ge 2 ] || usage
        declare "${1#--}=$2"
        shift 2
        ;;
    -*) usage ;;
    *)
        words+=("$1")
        shift
        ;;
    esac
done
case $command in
list) [ ${#words[@]} = 1 ] || usage ;;
restore)
    [ ${#words[@]} = 2 ] || usage
    { [ -n "$into" ] && [ -n "$identity" ]; } || usage
    ;;
*) usage ;;
esac
[ -f "${words[0]}/repository.json" ] || fail "no repository at ${words[0]}: it has no repository.json"
repo=$(cd "${words[0]}" && pwd)
[ -z "$identity" ] || [ -r "$identity" ] || fail "cannot read the identity file $identity"
if [ -z "$signer" ] && [ -n "$identity" ]; then
    signer=$(sed -n 's/^# repository: *\(SHA256:[A-Za-z0-9+/]*\) *$/\1/p' "$identity" | head -n 1)
fi
[ -n "$signer" ] ||
    fail "nothing says which repository is the right one: give its id with --signer SHA256:… (recovery kit, identity file)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# --- who may be believed ---------------------------------------------------------------------------------------------

hash_of() { sha256sum <"$1" | cut -c1-64; }

# open_signed FILE NAMESPACE KEYS: the object's JSON line, once its signature by one of the keys is verified. KEYS has
# one public key a line. Nothing of the object is looked at before.
open_signed() {
    local file=$1 namespace=$2 keys=$3 most=1048576
    [ "$namespace" != lifeboat-record ] || most=67108864
    [ "$(stat -c %s "$file")" -le "$most" ] || return 1
    # One line, one armored signature, nothing else.
    awk 'NR == 2 && $0 != "-----BEGIN SSH SIGNATURE-----" { bad = 1 }
         NR > 2 && $0 != "-----END SSH SIGNATURE-----" && $0 !~ /^[A-Za-z0-9+\/=]+$/ { bad = 1 }
         ended { bad = 1 }
         $0 == "-----END SSH SIGNATURE-----" { ended = 1 }
         END { exit bad || !ended }' "$file" || return 1
    sed 's/^/signer /' "$keys" >"$work/allowed"
    head -n 1 "$file" >"$work/line"
    tail -n +2 "$file" >"$work/signature"
    ssh-keygen -Y verify -q -n "$namespace" -I signer -f "$work/allowed" -s "$work/signature" \
        <"$work/line" >/dev/null 2>&1 || return 1
    cat "$work/line"
}

# believe LINE OBJECT CONDITION [JQ ARGUMENTS...]: whether the JSON line says what it must, once it is known to be of
# format 1 with no requirement. CONDITION is jq's.
believe() {
    local verdict line=$1 object=$2 condition=$3
    shift 3
    verdict=$(jq -r --arg repository "$signer" "$@" 'if .format != 1 or .requires != [] then "newer"
        elif .repository == $repository and ('"$condition"') then "yes" else "no" end' <<<"$line" 2>/dev/null) || return 1
    [ "$verdict" != newer ] || fail "$object is of a newer format: use the break-glass.sh that belongs to it"
    [ "$verdict" = yes ]
}

check_root() {
    head -n 1 "$repo/repository.json" | jq -er '.root_public_key | select(test("^ssh-ed25519 [A-Za-z0-9+/=]+$"))' \
        >"$work/root" 2>/dev/null || damaged "repository.json holds no root key"
    local found
    found=$(ssh-keygen -lf "$work/root" | cut -d' ' -f2)
    [ "$found" = "$signer" ] || damaged "the repository is $found, not $signer: another one, or forged"
    repository=$(open_signed "$repo/repository.json" lifeboat-repository "$work/root") ||
        damaged "repository.json is not signed by its root key"
    believe "$repository" repository.json '.kind == "repository"' || damaged "repository.json names another repository"
}

# Every signer object in order, each naming the hash of the one before. $work/signers becomes the table of keys: role,
# hosts, and for a revoked one the last headers that it is still believed for.
check_signers() {
    local n=1 previous=null line files
    : >"$work/signer-lines"
    while [ -e "$repo/signers/$n.json" ]; do
        line=$(open_signed "$repo/signers/$n.json" lifeboat-signer "$work/root") ||
            damaged "signers/$n.json is not signed by the root key"
        believe "$line" "signers/$n.json" '.kind == "signer" and .number == $n and .previous == $previous' \
            --argjson n "$n" --argjson previous "$previous" ||
            damaged "signers/$n.json does not follow the signers before it"
        printf '%s\n' "$line" >>"$work/signer-lines"
        previous="\"$(hash_of "$repo/signers/$n.json")\""
        n=$((n + 1))
    done
    signers=$((n - 1))
    files=$(find "$repo/signers" -type f -name '*.json' | wc -l)
    [ "$files" = "$signers" ] || damaged "signers/$n.json is missing: there are later ones"
    jq -n 'reduce inputs as $s ([];
        if $s.action == "add" then . + [{key: $s.public_key, role: $s.role, hosts: $s.hosts, last_good: null}]
        else map(if .key == $s.public_key then .last_good = $s.last_good else . end) end)' \
        "$work/signer-lines" >"$work/signers"
}

# open_header FILE: the header's line, when a key that may sign it has, and its name says what it says; with its hash, and
# whether its signer has been revoked since.
open_header() {
    local file=$1 host policy name line='' hash revoked
    hash=$(hash_of "$file")
    name=$(basename "$file" .json)
    policy=$(basename "$(dirname "$file")")
    host=$(basename "$(dirname "$(dirname "$file")")")
    for revoked in false true; do
        jq -r --arg host "$host" --arg policy "$policy" --arg sequence "${name%%.*}" --arg hash "$hash" \
            --argjson revoked "$revoked" '
            ($sequence | tonumber) as $n | .[] | select(.role == "snapshot" and (.hosts | index($host))
                and (.last_good != null) == $revoked
                and (.last_good == null or any(.last_good[]; .host == $host and .policy == $policy
                    and ($n < .sequence or ($n == .sequence and .header == $hash))))) | .key' \
            "$work/signers" >"$work/keys" 2>/dev/null || return 1
        ! line=$(open_signed "$file" lifeboat-snapshot "$work/keys") || break
    done
    [ -n "$line" ] || return 1
    believe "$line" "$file" '.kind == "snapshot" and .host == $host and .policy == $policy
        and $name == ("0000000000\(.sequence)"[-10:] + "." + .id)' \
        --arg host "$host" --arg policy "$policy" --arg name "$name" || return 1
    jq -c --arg hash "$hash" --argjson revoked "$revoked" '. + {hash: $hash, revoked: $revoked}' <<<"$line"
}

# Below the last good header of a revoked key only that is its work which this header leads down to, hash by hash. What it
# contradicts is left out; where one between is gone, what is below stays, and is named.
check_revoked() {
    local verdict name
    jq -cs --slurpfile records "$work/records" --slurpfile signers "$work/signers" '
        ([.[] | {key: .hash, value: .previous}] + [$records[] | select(.note == "prune") | .removed[]
            | {key: .header, value: .previous}] | map(select(.value)) | from_entries) as $before
        | [$signers[][].last_good // [] | .[] | . + {history: [.header | recurse($before[.] // empty)]}] as $good
        | .[] | . as $header | [$good[] | select(.host == $header.host and .policy == $header.policy)] as $good
        | . + {verdict: (if (.revoked | not) or any($good[]; any(.history[]; . == $header.hash)) then "good"
            elif any($good[]; $header.sequence <= .sequence - (.history | length)) then "open" else "forged" end)}' \
        "$work/header-lines" >"$work/judged"
    while read -r verdict name; do
        case $verdict in
        open) note "$name: its signer has been revoked, and what would link it to the last good one is gone: it may be forged" ;;
        forged) note "$name: its signer has been revoked, and the last good one does not lead down to it: it is forged" ;;
        esac
        forged=1
    done < <(jq -r 'select(.verdict != "good") | "\(.verdict) \(.id)"' "$work/judged")
    jq -c 'select(.verdict != "forged")' "$work/judged" >"$work/header-lines"
}

# open_record FILE: the record's line, when a key that may sign it has, and its name says when and what it is.
open_record() {
    local line hash
    hash=$(hash_of "$1")
    jq -r '.[] | select(.last_good == null and .role != "drill") | .key' "$work/signers" >"$work/keys"
    line=$(open_signed "$1" lifeboat-record "$work/keys") || return 1
    believe "$line" "$1" '.kind == "record"
        and $name == (.time | gsub("[-:]"; "") | sub("[.][0-9]+"; "")) + "-" + $hash[0:8]' \
        --arg name "$(basename "$1" .json)" --arg hash "$hash" || return 1
    # Only a signer with that role prunes and repacks; which key it was shows when the others are left out.
    jq -r --argjson record "$line" '.[] | select(.last_good == null and (.hosts | index($record.host))
        and if $record.note == "prune" or $record.note == "repack" then .role == "prune" else .role != "drill" end)
        | .key' "$work/signers" >"$work/keys"
    open_signed "$1" lifeboat-record "$work/keys"
}

# Every header that can be believed, one a line, in $work/headers, with the tags that records gave and took since, and
# the refs that a repack gave it; the others are named.
read_headers() {
    local file line
    : >"$work/header-lines"
    : >"$work/records"
    forged=0
    while read -r file; do
        if line=$(open_header "$file"); then
            jq -c --arg hash "$(hash_of "$file")" '. + {hash: $hash}' <<<"$line" >>"$work/header-lines"
        else
            note "${file#"$repo"/} is damaged or forged: no signer of this repository stands behind it"
            forged=1
        fi
    done < <(find "$repo/snapshots" -type f -name '*.json' 2>/dev/null | sort)
    [ "$(jq -s 'map(.signers) | max // 0' "$work/header-lines")" -le "$signers" ] ||
        damaged "signers/$((signers + 1)).json is missing: a snapshot names it"
    while read -r file; do
        if line=$(open_record "$file"); then
            printf '%s\n' "$line" >>"$work/records"
        else
            note "${file#"$repo"/} is damaged or forged: no signer of this repository stands behind it"
            forged=1
        fi
    done < <(find "$repo/records" -type f -name '*.json' 2>/dev/null | sort)
    check_revoked
    # Records count in the order of their times, whatever their names.
    jq -cs 'sort_by(.time)[]' "$work/records" >"$work/ordered"
    mv "$work/ordered" "$work/records"
    jq -c --slurpfile records "$work/records" '.host as $host | .policy as $policy
        | reduce ($records[] | select(.host == $host and .policy == $policy)) as $r (.;
            if $r.note == "repack" then .hash as $hash
                | reduce ($r.moved[] | select(.header == $hash)) as $moved (.; .own_refs //= .refs | .refs = $moved.refs)
            elif $r.snapshot != .id then .
            elif $r.note == "tag" then .tags += [$r.tag]
            elif $r.note == "untag" then .tags -= [$r.tag]
            else . end)
        | .tags |= unique' "$work/header-lines" >"$work/headers"
}

# Each sequence must be there as a header or in a prune record; two headers of one are a fork.
check_order() {
    local of n
    while read -r of; do
        jq -r --arg of "$of" 'select("\(.host)/\(.policy)" == $of) | .sequence' "$work/headers" | sort -n >"$work/there"
        while read -r n; do
            note "$of: two snapshots carry sequence $n: the history has been forked"
            forged=1
        done < <(uniq -d "$work/there")
        jq -r --arg of "$of" 'select(.note == "prune" and "\(.host)/\(.policy)" == $of) | .removed[].sequence' \
            "$work/records" >"$work/pruned"
        while read -r n; do
            note "$of: snapshot $n is gone, and no prune record explains it"
            forged=1
        done < <(sort -nu "$work/there" "$work/pruned" | awk '{ for (n = last + 1; n < $1; n++) print n; last = $1 }')
    done < <(jq -r '"\(.host)/\(.policy)"' "$work/headers" | sort -u)
}

list() {
    jq -rs 'sort_by(.host, .policy, .sequence)[]
        | [.id, "\(.host)/\(.policy)", .sequence, .outcome, .bytes_total, .bytes_new, (.tags | join(","))] | @tsv' \
        "$work/headers" | awk -F '\t' '
        BEGIN { printf "%-25s  %-24s %5s  %-9s %15s %15s  %s\n", "SNAPSHOT", "HOST/POLICY", "SEQ", "OUTCOME", "BYTES", "NEW", "TAGS" }
        { printf "%-25s  %-24s %5s  %-9s %15s %15s  %s\n", $1, $2, $3, $4, $5, $6, $7 }'
}

# --- one snapshot ----------------------------------------------------------------------------------------------------

# choose NAME: the one header that it means, in $header.
choose() {
    local name=$1
    if [ "$name" = latest ]; then
        [ "$(jq -r '"\(.host)/\(.policy)"' "$work/headers" | sort -u | wc -l)" -le 1 ] ||
            fail "\"latest\" of which host and policy? name the snapshot by its id"
        header=$(jq -cs 'max_by(.sequence).sequence as $last | .[] | select(.sequence == $last)' "$work/headers")
        [ "$forged" = 0 ] || note "\"latest\" is the newest that can be believed; see above for what cannot"
    else
        header=$(jq -cs --arg name "$name" 'map(select(.tags | index($name))) | sort_by(.outcome != "partial", .sequence)
            | last // empty' "$work/headers")
        [ -n "$header" ] || header=$(jq -c --arg name "$name" 'select(.id | startswith($name))' "$work/headers")
    fi
    [ -n "$header" ] || fail "no snapshot \"$name\" in $repo"
    [ "$(wc -l <<<"$header")" = 1 ] || fail "\"$name\" means more than one snapshot: name it by its id"
}

# check_object FILE ID LENGTH: the stored bytes are those that the id and the length name.
check_object() {
    [ -f "$1" ] || { note "${1#"$repo"/} is missing"; return 1; }
    [ -z "$3" ] || [ "$(stat -c %s "$1")" = "$3" ] || { note "${1#"$repo"/} is not $3 bytes long"; return 1; }
    [ "$(hash_of "$1")" = "$2" ] || { note "${1#"$repo"/} is damaged: its bytes are not those of its name"; return 1; }
}

open_sealed() { age -d -i "$identity" "$1" | zstd -dcq --memory=128MB; }

read_manifest() {
    local id refs
    id=$(jq -r .manifest <<<"$header")
    refs=$(jq -r .refs <<<"$header")
    check_object "$repo/manifests/$id.json.zst.age" "$id" "$(jq -r .manifest_bytes <<<"$header")" || exit 4
    # A copy keeps what was pruned from the repository; what a repack made of that it may never have got.
    [ -f "$repo/refs/$refs.txt" ] || refs=$(jq -r '.own_refs // .refs' <<<"$header")
    check_object "$repo/refs/$refs.txt" "$refs" "" || exit 4
    cp "$repo/refs/$refs.txt" "$work/refs"
    open_sealed "$repo/manifests/$id.json.zst.age" >"$work/manifest" ||
        fail "the identity $identity does not open the manifest of this snapshot"
    believe "$(jq -c 'del(.sources)' "$work/manifest")" "the manifest" '.snapshot == $header.id
        and .host == $header.host and .policy == $header.policy and .sequence == $header.sequence' \
        --argjson header "$header" || damaged "the manifest belongs to another snapshot"
    jq -e '[.sources[] | .name, .streams[].name] | all(test("^[A-Za-z0-9_%][A-Za-z0-9_%.-]*$"))' \
        "$work/manifest" >/dev/null || damaged "the manifest holds a name that is no file name"
    # One line a stream: where it stands in the manifest, and what is said of it.
    jq -r '.sources | to_entries[] | .key as $s | .value.name as $source | .value.streams | to_entries[]
        | [$source, $s, .key, (.value | .name, .kind, .length, .sha256 // "-", .encoding, .ids.depth)] | join(" ")' \
        "$work/manifest" >"$work/streams"
}

# Every archive of the snapshot, opened once, into one file per chunk, named by the chunk's id.
unpack_archives() {
    local kind id length count=0 total
    total=$(grep -c '^archive ' "$work/refs" || true)
    while read -r kind id length; do
        [ "$kind" = archive ] || continue
        count=$((count + 1))
        [ ! -t 2 ] || printf '\rbreak-glass: archive %d of %d' "$count" "$total" >&2
        local file=$repo/archives/${id:0:2}/$id.tar.zst.age
        if ! check_object "$file" "$id" "$length"; then
            lost=1
        elif ! open_sealed "$file" | tar -x -C "$chunks" --no-same-owner --no-same-permissions -f -; then
            note "${file#"$repo"/} does not open"
            lost=1
        fi
    done <"$work/refs"
    [ ! -t 2 ] || [ "$count" = 0 ] || printf '\n' >&2
}

# chunk_bytes IDS: the content of those chunks, in order.
chunk_bytes() { (cd "$chunks" && xargs -r -d '\n' cat -- <"$1"); }

# data_chunks SOURCE STREAM DEPTH: the ids of a stream's data chunks, in order, in $work/ids; source and stream by their
# positions in the manifest.
data_chunks() {
    local depth=$3
    jq -r --argjson source "$1" --argjson stream "$2" '.sources[$source].streams[$stream].ids.root[][0]
        | select(test("^[0-9a-f]{64}$"))' "$work/manifest" >"$work/ids"
    while [ "$depth" -gt 0 ]; do
        # Entries of 40 bytes: 32 of the id, then the plain length below it.
        chunk_bytes "$work/ids" >"$work/entries" 2>/dev/null || return 1
        od -An -v -tx1 -w40 "$work/entries" | tr -d ' ' | cut -c1-64 >"$work/ids"
        depth=$((depth - 1))
    done
}

# write_stream, with the words of a line of $work/streams: restores one stream below the destination.
write_stream() {
    local dir=$into/$1 what="source $1: stream $4" name=$4 kind=$5 length=$6 sum=$7 encoding=$8 depth=$9 there
    [ "$kind" != listing ] || return 0
    [ "$encoding" = plain ] || { note "$what has an encoding that is not known here"; return 1; }
    data_chunks "$2" "$3" "$depth" || { note "$what: chunks of its ids tree are lost"; return 1; }
    there=$(cd "$chunks" && xargs -r -d '\n' stat -c %s -- <"$work/ids" 2>/dev/null |
        awk '{ n += $1 } END { printf "%.0f", n }') || { note "$what: chunks are lost"; return 1; }
    [ "$there" = "$length" ] || { note "$what: $there of $length bytes are there"; return 1; }
    mkdir -p "$dir"
    if [ "$kind" = tar ]; then
        chunk_bytes "$work/ids" | tar -x -p -C "$dir" "${tar_options[@]}" -f - || { note "$what does not unpack"; return 1; }
        disarm "$dir"
    else
        chunk_bytes "$work/ids" >"$dir/$name"
        [ "$sum" = - ] || [ "$(hash_of "$dir/$name")" = "$sum" ] || { note "$what is not what was captured"; return 1; }
    fi
}

# What lets a restored file act with the rights of others is left out, as `lifeboat restore` does. Nobody else can reach
# it before: the folders that this script makes are closed to them.
disarm() {
    find "$1" ! -type d ! -type l -perm /6000 -printf 'break-glass: %p: setuid or setgid not restored\n' -exec chmod ug-s {} + >&2
    find "$1" -type b,c,p -printf 'break-glass: %p: special file not restored\n' -delete >&2
}

restore() {
    choose "${words[1]}"
    [ ! -e "$into" ] || [ -z "$(ls -A "$into")" ] || fail "$into is not empty"
    mkdir -p "$into"
    into=$(cd "$into" && pwd)
    read_manifest
    lost=0
    chunks=$(mktemp -d "${scratch:-$into}/.break-glass.XXXXXX")
    trap 'rm -rf "$work" "$chunks"' EXIT
    # Entries that Lifeboat marks as taken again carry a keyword of its own; the later one counts, as always with tar.
    tar_options=(--xattrs --xattrs-include='user.*' --acls --warning=no-unknown-keyword --numeric-owner)
    [ "$(id -u)" = 0 ] || tar_options=(--no-same-owner --warning=no-unknown-keyword)
    unpack_archives
    local source outcome line words
    while read -r source outcome; do
        if [ "$outcome" = failed ]; then
            note "source $source is not in this snapshot: its capture failed"
            continue
        fi
        local whole=1 bytes=0
        while read -r line; do
            read -ra words <<<"$line"
            [ "${words[4]}" = listing ] || bytes=$((bytes + words[5]))
            write_stream "${words[@]}" || { whole=0 lost=1; }
        done < <(awk -v source="$source" '$1 == source' "$work/streams")
        [ "$whole" = 0 ] || printf '%-20s %15s bytes\n' "$source" "$bytes"
    done < <(jq -r '.sources[] | "\(.name) \(.outcome)"' "$work/manifest")
    [ "$lost" = 0 ] || damaged "snapshot $(jq -r .id <<<"$header"): not everything could be restored; see above"
    printf 'restored %s into %s\n' "$(jq -r .id <<<"$header")" "$into"
}

check_root
check_signers
read_headers
check_order
if [ "$command" = list ]; then
    list
    [ "$forged" = 0 ] || exit 4
else
    restore
fi
