#!/bin/sh
# Starts Valkey with an append-only file and the password of a file, which stands in no argument.
#   VALKEY_PASSWORD_FILE, VALKEY_DATA, VALKEY_PORT
set -eu
configuration=${VALKEY_RUN:-/tmp}/valkey.conf
umask 077
cat > "$configuration" <<END
port ${VALKEY_PORT:-6379}
dir ${VALKEY_DATA:-/data}
requirepass $(cat "${VALKEY_PASSWORD_FILE:-/run/secrets/valkey_password}")
appendonly yes
appendfsync everysec
# A queue of ids: nothing may be thrown away to make room.
maxmemory ${VALKEY_MEMORY:-192mb}
maxmemory-policy noeviction
END
exec valkey-server "$configuration"
