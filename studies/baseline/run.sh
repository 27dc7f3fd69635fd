#!/bin/sh
# The GPT baseline on WikiText-2, so many minutes of CPU, and its regularised twin for as many steps; measured on the
# test split.
#
# Usage: studies/baseline/run.sh FOLDER_OF_WIKITEXT_2 [MINUTES] [ROOT]
set -eu
data=$1 minutes=${2:-20} root=${3:-.}
often="--set training.validate_every=50 --set training.validation_rows=512 --set training.checkpoint_every=50
  --set training.sample_every=200"
# shellcheck disable=SC2086
armillary train baseline-gpt --data "$data" --root "$root" --minutes "$minutes" $often
steps=$(sed -n 's/^  steps: //p' "$root/runs/baseline-gpt/recipe.yaml")
# shellcheck disable=SC2086
armillary train baseline-gpt-regularized --data "$data" --root "$root" --steps "$steps" $often
armillary evaluate baseline-gpt --references --root "$root" --json > "$root/baseline-gpt.json"
armillary evaluate baseline-gpt-regularized --root "$root" --json > "$root/baseline-gpt-regularized.json"
armillary compare baseline-gpt baseline-gpt-regularized --root "$root"
armillary report baseline-gpt baseline-gpt-regularized --root "$root"
