#!/bin/sh
# Serves one model folder by vLLM, as docs/operations.md says; further arguments go to vLLM.
#   POLICY_MODEL         the folder of one version, as /models/NAME/VERSION
#   POLICY_NAME          what it is served as
#   POLICY_API_KEY_FILE  its key; vLLM reads keys from the environment only
#   POLICY_HOST, POLICY_PORT
set -eu
: "${POLICY_MODEL:?the folder of the version to serve}" "${POLICY_NAME:?the name to serve it under}"
if [ -n "${POLICY_API_KEY_FILE:-}" ]; then
    VLLM_API_KEY=$(cat "$POLICY_API_KEY_FILE")
    export VLLM_API_KEY
fi
exec python -m vllm.entrypoints.openai.api_server \
    --host "${POLICY_HOST:-0.0.0.0}" --port "${POLICY_PORT:-8000}" \
    --model "$POLICY_MODEL" --served-model-name "$POLICY_NAME" "$@"
