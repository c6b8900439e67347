#!/bin/sh
# Exit code 0 where Valkey lets us in and answers.
set -eu
REDISCLI_AUTH=$(cat "${VALKEY_PASSWORD_FILE:-/run/secrets/valkey_password}")
export REDISCLI_AUTH
test "$(valkey-cli -p "${VALKEY_PORT:-6379}" ping)" = PONG
