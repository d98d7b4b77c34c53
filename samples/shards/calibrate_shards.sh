#!/bin/sh
# Calibrates a model in shards, several at a time, and joins their statistics: see docs/guides/distributed.md.
#
# Run: sh samples/shards/calibrate_shards.sh MODEL DATA FOLDER [SHARDS [AT_A_TIME]]
#
# Writes FOLDER/shard-I.stats.npz for each shard and FOLDER/all.stats.npz, equal to the last bit to the statistics of one
# pass over DATA. Shards that are there already are kept: after an interruption only the others run.
set -eu
model=$1 data=$2 folder=$3 shards=${4:-4} at_a_time=${5:-2}
mkdir -p "$folder"
export model data folder shards

seq "$shards" | xargs -P "$at_a_time" -I '{}' sh -eu -c '
  part=$folder/shard-{}.stats.npz
  [ -e "$part" ] || qtool calibrate "$model" --calib-data "$data" --shard "{}/$shards" -o "$part" --threads 1 --quiet
'
# By number, and not all that lies there: a shard of an earlier count would be refused.
set --
for number in $(seq "$shards"); do
  set -- "$@" "$folder/shard-$number.stats.npz"
done
qtool calibrate --merge "$@" -o "$folder/all.stats.npz" --force
