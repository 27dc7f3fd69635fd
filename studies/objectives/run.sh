#!/bin/sh
# One shape, one tokenizer, as many tokens each, seven objectives: bounds and exact likelihoods on held-out articles of
# WikiText-2, and the texts they write, judged by a larger model. About an hour and a half on two cores; what is there
# already is not done again.
#
# Usage: studies/objectives/run.sh FOLDER_OF_WIKITEXT_2 [ROOT] [STEPS]
set -eu
here=$(dirname "$0") data=$1 root=${2:-.} steps=${3:-800}
[ -e "$root/articles" ] || python "$here/articles.py" "$data" "$root/articles"

train() { # NAME, settings
  name=$1 && shift
  for setting in "$@"; do shift && set -- "$@" --set "$setting"; done
  armillary train "$here/shape.yaml" --name "$name" --data "$root/articles" --root "$root" --resume auto \
    --set training.steps="$steps" "$@"
}
measure() { # NAME, file, options of evaluate
  name=$1 file=$2 && shift 2
  [ -s "$root/$name-$file.json" ] ||
    { armillary evaluate "$name" --root "$root" --json "$@" > "$root/part" && mv "$root/part" "$root/$name-$file.json"; }
}
judge() { # NAME, file, options of judge
  name=$1 file=$2 && shift 2
  [ -s "$root/$name-texts-$file.json" ] ||
    { armillary judge "$name" --by judge --n 62 --max-new-tokens 127 --root "$root" --json "$@" > "$root/part" &&
      mv "$root/part" "$root/$name-texts-$file.json"; }
}
ancestral=sampling.sampler.name=ancestral
blocks='sampling.sampler={name: blockwise, sampler: {name: ancestral}}'

train judge seed=8 model.backbone.d_model=256 model.backbone.n_layers=6 model.backbone.n_heads=4 \
  model.backbone.d_ff=704 training.steps=$((steps * 3 / 2))
train autoregressive
train masked objective.name=masked_diffusion $ancestral
train score-entropy objective.name=score_entropy $ancestral
train uniform objective.name=uniform_diffusion model.backbone.knows_noise_level=true $ancestral
train block-4 'objective={name: block_diffusion, block: 4}' "$blocks"
train block-16 'objective={name: block_diffusion, block: 16}' "$blocks"
train any-order objective.name=any_order sampling.sampler.name=speculative

measure judge bound
measure autoregressive bound
measure any-order bound
for name in masked score-entropy uniform block-4 block-16; do
  measure $name bound --samples 32 --tokens 40000
done
measure masked whole --samples 15
for name in autoregressive masked score-entropy block-4 block-16 any-order; do
  for order in left_to_right random; do
    case $name-$order in autoregressive-* | block-*-random) continue ;; esac
    measure $name "$order" --exact $order --tokens 10000
  done
done
for name in masked score-entropy; do
  measure $name same --samples 64 --tokens 10000
done
for name in block-4 block-16; do
  measure $name same --samples 16 --tokens 10000
done

judge autoregressive left_to_right
for name in masked score-entropy uniform; do
  judge $name ancestral --steps 4 --steps 16 --steps 64 --steps 128
done
judge masked first_hitting --sampler first_hitting
judge masked confident --sampler confident --steps 16 --steps 64
judge block-4 ancestral --steps 1 --steps 2 --steps 4
judge block-16 ancestral --steps 1 --steps 4 --steps 16
judge any-order speculative
judge any-order one_by_one --set sampling.sampler.drafts=false
