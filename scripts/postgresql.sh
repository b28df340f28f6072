#!/usr/bin/env bash
# A throw-away PostgreSQL server on loopback, for tests and for a first try. Not for data that matter: it does not fsync.
# Usage: bash scripts/postgresql.sh install        installs PostgreSQL with apt where there is none (as root)
#        bash scripts/postgresql.sh start FOLDER   makes a server in FOLDER, or starts the one that is there
#        bash scripts/postgresql.sh stop FOLDER    stops it, at once; FOLDER stays
# start prints the server's address and writes it to FOLDER/url; the password is in FOLDER/pgpass (PGPASSFILE).
# FOLDER must be within reach of the user `postgres` when this is run as root, as the server refuses to run as root.
# Exit code 3: there is no PostgreSQL.
set -euo pipefail

usage() { sed -n '3,5s/^# //p' "$0" >&2; exit 2; }

# The newest of Debian's, which are not on the PATH, or whatever is.
find_programs() {
    local found
    found=$(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)
    if [ -x "$found" ]; then dirname "$found"; return; fi
    found=$(command -v initdb) && dirname "$(readlink -f "$found")"
}

install_server() {
    if find_programs >/dev/null; then return; fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "no PostgreSQL, and only root can install it, with apt-get" >&2
        exit 3
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql
}

as_server_user() {
    if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi
}

make_cluster() {
    umask 077
    mkdir -p "$folder"
    local password
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    echo "$password" >"$folder/password"
    echo "127.0.0.1:*:*:skiprec:$password" >"$folder/pgpass"
    if [ "$(id -u)" = 0 ]; then chown -R postgres "$folder"; fi
    as_server_user "$programs/initdb" --pgdata "$folder/data" --username skiprec --pwfile "$folder/password" \
        --auth scram-sha-256 --encoding UTF8 --locale C --no-sync >/dev/null
    rm "$folder/password"
    cat >>"$folder/data/postgresql.conf" <<-END
	listen_addresses = '127.0.0.1'
	unix_socket_directories = ''
	max_connections = 200
	fsync = off
	END
}

launch() {  # PORT
    said=$(as_server_user "$programs/pg_ctl" start --pgdata "$folder/data" --log "$folder/log" --wait -o "-p $1" 2>&1) ||
        return 1
    echo "postgresql+psycopg://skiprec@127.0.0.1:$1/postgres" >"$folder/url"
    echo "$1" >"$folder/port"
}

start_server() {
    if [ ! -e "$folder/data" ]; then make_cluster; fi
    cd "$folder"
    if as_server_user "$programs/pg_ctl" status --pgdata "$folder/data" >/dev/null; then cat url; return; fi
    local said
    if [ -e port ]; then  # whoever knew its address finds it there again
        if launch "$(cat port)"; then cat url; return; fi
    else
        for _ in 1 2 3 4 5; do  # a port may be taken: the server itself is what can tell
            if launch $((20000 + RANDOM % 12000)); then cat url; return; fi
        done
    fi
    echo "PostgreSQL did not start in $folder, whose log ends with what it said: $said" >&2
    tail -n 5 log >&2
    exit 1
}

[ $# -ge 1 ] || usage
if [ "$1" = install ]; then install_server; exit; fi
[ $# = 2 ] || usage
if ! programs=$(find_programs); then
    echo "there is no PostgreSQL here; as root: bash scripts/postgresql.sh install" >&2
    exit 3
fi
folder=$(realpath -m "$2")
case $1 in
    start) start_server ;;
    stop) cd "$folder" && as_server_user "$programs/pg_ctl" stop --pgdata "$folder/data" --mode immediate --silent ;;
    *) usage ;;
esac
