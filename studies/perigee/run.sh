#!/bin/sh
# Perigee on WikiText-2: the original's 16 and 512 steps, perigee-long, and a transformer of as many parameters that
# reads as many tokens; each measured on the test split, beside what single words and runs of words tell.
#
# Usage: studies/perigee/run.sh FOLDER_OF_WIKITEXT_2 ROOT
# Started again, it goes on where it was stopped.
set -eu
data=$1 root=$2
mkdir -p "$root"
for name in perigee-smoke perigee perigee-long perigee-long-transformer; do
  [ -s "$root/$name.json" ] && continue
  armillary train "$name" --data "$data" --root "$root" --resume auto
  references=$([ "$name" = perigee-long-transformer ] || echo --references)
  # shellcheck disable=SC2086
  armillary evaluate "$name" --root "$root" --json --split test --samples 4 --tokens 100000 $references > "$root/$name.part"
  armillary sample "$name" --root "$root" --json --prompt "The game" --max-new-tokens 40 --n 2 --steps 40 > "$root/$name-texts.json"
  mv "$root/$name.part" "$root/$name.json"
done
