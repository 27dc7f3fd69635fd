#!/bin/sh
# The GPT baseline and its regularised twin on WikiText-2, so many minutes of CPU each, measured on the test split.
#
# Usage: studies/baseline/run.sh FOLDER_OF_WIKITEXT_2 [MINUTES] [ROOT]
set -eu
data=$1 minutes=${2:-20} root=${3:-.}
for recipe in baseline-gpt baseline-gpt-regularized; do
  armillary train "$recipe" --data "$data" --minutes "$minutes" --root "$root" \
    --set training.validate_every=50 --set training.validation_rows=512 --set training.checkpoint_every=50 \
    --set training.sample_every=200
done
armillary evaluate baseline-gpt --references --root "$root" --json > "$root/baseline-gpt.json"
armillary evaluate baseline-gpt-regularized --root "$root" --json > "$root/baseline-gpt-regularized.json"
armillary compare baseline-gpt baseline-gpt-regularized --root "$root"
armillary report baseline-gpt baseline-gpt-regularized --root "$root"
