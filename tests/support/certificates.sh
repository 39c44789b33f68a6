#!/usr/bin/env bash
# certificates.sh DIR DOMAIN [DAYS [NAME...]]: a Let's Encrypt folder as certbot leaves it, from a private authority:
# live/ links into archive/, root and intermediate, and a leaf valid for DAYS (default 90) that was renewed once, for
# further names too. The authority's root lies beside it in DIR/root.pem.
set -euo pipefail
umask 077

usage='usage: certificates.sh DIR DOMAIN [DAYS [NAME...]]'
dir=${1:?$usage} domain=${2:?$usage} days=${3:-90}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$dir/archive/$domain" "$dir/live/$domain" "$dir/renewal"

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

# issue NAME SUBJECT EXTENSIONS DAYS [AUTHORITY]: NAME.key and NAME.pem, signed by the authority or by itself.
issue() {
    key "$work/$1.key"
    openssl req -new -key "$work/$1.key" -subj "$2" -out "$work/$1.csr"
    printf '%b' "$3" >"$work/$1.ext"
    if [ $# -gt 4 ]; then
        openssl x509 -req -in "$work/$1.csr" -CA "$work/$5.pem" -CAkey "$work/$5.key" -CAcreateserial -days "$4" \
            -extfile "$work/$1.ext" -out "$work/$1.pem" 2>/dev/null
    else
        openssl x509 -req -in "$work/$1.csr" -key "$work/$1.key" -days "$4" -extfile "$work/$1.ext" \
            -out "$work/$1.pem" 2>/dev/null
    fi
}

authority='basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n'
names=$(printf ',DNS:%s' "$domain" "www.$domain" "${@:4}")
leaf="basicConstraints=CA:FALSE\nsubjectAltName=${names:1}\nextendedKeyUsage=serverAuth\n"
issue root "/CN=Test Root" "$authority" 3650
issue intermediate "/CN=Test Intermediate" "$authority" 1825 root
cp "$work/root.pem" "$dir/root.pem"

for n in 1 2; do
    issue leaf "/CN=$domain" "$leaf" "$days" intermediate
    cp "$work/leaf.pem" "$dir/archive/$domain/cert$n.pem"
    cp "$work/intermediate.pem" "$dir/archive/$domain/chain$n.pem"
    cat "$work/leaf.pem" "$work/intermediate.pem" >"$dir/archive/$domain/fullchain$n.pem"
    cp "$work/leaf.key" "$dir/archive/$domain/privkey$n.pem"
done
for name in cert chain fullchain privkey; do
    ln -sfn "../../archive/$domain/${name}2.pem" "$dir/live/$domain/$name.pem"
done
printf 'version = 2.1.0\narchive_dir = %s\ncert = %s\n' "$dir/archive/$domain" "$dir/live/$domain/cert.pem" \
    >"$dir/renewal/$domain.conf"
