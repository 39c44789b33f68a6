#!/bin/bash
# What the official image's entry point does: a cluster in $PGDATA at the first start, with $POSTGRES_DB and the
# statements of /docker-entrypoint-initdb.d/*.sql, one a line; then the server.
set -e
bin=/usr/lib/postgresql/15/bin
mkdir -p /var/run/postgresql "$PGDATA"
chown 70:70 /var/run/postgresql "$PGDATA" /var/lib/postgresql
chmod 700 "$PGDATA"
as() { setpriv --reuid=70 --regid=70 --clear-groups "$@"; }
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    as bash -c 'umask 077; printf %s "$POSTGRES_PASSWORD" >/tmp/pw'
    as $bin/initdb -N -A scram-sha-256 -U "$POSTGRES_USER" --pwfile=/tmp/pw -E UTF8 --locale=C.UTF-8 -D "$PGDATA" >/dev/null
    rm /tmp/pw
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    {
        [ "$POSTGRES_DB" = postgres ] || echo "create database \"$POSTGRES_DB\""
        cat /docker-entrypoint-initdb.d/*.sql 2>/dev/null || true
    } | as $bin/postgres --single -D "$PGDATA" postgres >/dev/null
fi
exec setpriv --reuid=70 --regid=70 --clear-groups $bin/postgres -D "$PGDATA" -c listen_addresses='*' \
    -c unix_socket_directories=/var/run/postgresql -c dynamic_shared_memory_type=posix -c fsync=off
