#!/bin/sh
# Perigee on WikiText-2: the original's 16 and 512 steps, perigee-long for so many minutes, and a transformer of as many
# parameters for as many steps; each measured on the test split, beside what single words and runs of words tell.
#
# Usage: studies/perigee/run.sh FOLDER_OF_WIKITEXT_2 ROOT [MINUTES]
# Started again, it goes on where it was stopped.
set -eu
data=$1 root=$2 minutes=${3:-20}
mkdir -p "$root"

steps() { # of a run that has begun
  sed -n 's/^  steps: //p' "$root/runs/$1/recipe.yaml"
}

study() { # NAME, options of a new run; its references are those of the same tokens
  name=$1
  [ -s "$root/$name.json" ] && return
  if [ -f "$root/runs/$name/recipe.yaml" ]; then
    armillary train "$name" --data "$data" --root "$root" --resume auto --steps "$(steps "$name")"
  else
    armillary train "$@" --data "$data" --root "$root"
  fi
  armillary sample "$name" --root "$root" --json --prompt "The game" --max-new-tokens 40 --n 2 --steps 40 \
    > "$root/$name-texts.json"
  armillary evaluate "$name" --root "$root" --json --samples 8 --tokens 50000 --references > "$root/part"
  mv "$root/part" "$root/$name.json"
}

study perigee-smoke --set training.log_every=1
study perigee
study perigee-long --minutes "$minutes"
study perigee-long-transformer --steps "$(steps perigee-long)"
armillary compare perigee-long perigee-long-transformer --root "$root" --samples 8 --tokens 50000
