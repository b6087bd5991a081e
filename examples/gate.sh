#!/usr/bin/env bash
# A step of a continuous-integration job: compress a model, and fail if the result is worse than its gates allow.
#
#   MODEL=org/model RECIPE=balanced MAX_KL=0.01 ./gate.sh
#
# In GitHub Actions: `- run: examples/gate.sh` with SPQ_URL and SPQ_API_KEY from secrets. The exit code is that of
# `spq wait`: 0 the gates are kept, 1 they are not, 4 no valid key, 5 the request was refused, 6 the service is away.
set -euo pipefail

recipe=$(mktemp --suffix .json)
trap 'rm -f "$recipe"' EXIT
cat >"$recipe" <<JSON
{"extends": "${RECIPE:-balanced}", "gates": {"max_kl": ${MAX_KL:-0.01}}}
JSON

# The same commit asks for the same job, however often the step is run again.
job=$(spq jobs submit "$MODEL" --recipe "$recipe" ${SPQ_SUBMIT_OPTIONS:-} \
    --label "commit=${GITHUB_SHA:-local}" --idempotency-key "gate-${GITHUB_RUN_ID:-$RANDOM$RANDOM}")
echo "job $job"

status=0
spq wait "$job" || status=$?
spq jobs show "$job" | tee -a "${GITHUB_STEP_SUMMARY:-/dev/null}"
exit "$status"
