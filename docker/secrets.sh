#!/bin/sh
# Makes the secrets of compose.yaml that are not there yet, in the folder given or secrets/ here.
# The folder is its owner's alone; the files can be read by all, since a container's user, which is
# another one, sees them by the mode that they have here.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
umask 022

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

keep() { # NAME TEXT: never over one that is there
    test -s "$folder/$1" || printf '%s\n' "$2" > "$folder/$1"
}

keep api_keys "rung-$(random)"
keep policy_api_key "$(random)"
keep grafana_password "$(random)"
keep valkey_password "$(random)"
keep redis_url "redis://:$(cat "$folder/valkey_password")@valkey:6379/0"
