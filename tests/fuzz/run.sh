#!/bin/sh
# run.sh - runs the fuzz targets that `make fuzz` built, one after the other, and then the mutator.
#
#   TIME=60 sh tests/fuzz/run.sh NAME ...
#
# Each target first gets its corpus, tests/fuzz/corpus/NAME, and then TIME seconds of new inputs. An
# input over 2 s or over 1 GB is a failure like a crash. What is found is in build/fuzz/found; copy
# it to the corpus once it is mended. Exit status: 1 if anything was found.
set -u
TIME=${TIME:-60}
OUT=build/fuzz
mkdir -p $OUT/found
status=0
export OMP_NUM_THREADS=1

for name in "$@"; do
  seeds=tests/fuzz/corpus/$name
  new=$OUT/corpus_$name
  mkdir -p "$new" "$seeds"
  limits="-timeout=2 -rss_limit_mb=1024 -max_len=65536 -artifact_prefix=$OUT/found/$name-"
  log=$OUT/$name.log
  if ! $OUT/fuzz_$name $limits -runs=0 "$seeds" > "$log" 2>&1; then
    status=1
    echo "$name: FAILED on its corpus, see $log"
    continue
  fi
  [ "$TIME" -gt 0 ] || { echo "$name: corpus of $(ls "$seeds" | wc -l) files passed"; continue; }
  if $OUT/fuzz_$name $limits -max_total_time="$TIME" -print_final_stats=1 "$new" "$seeds" \
      > "$log" 2>&1; then
    echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs passed," \
      "$(sed -n 's/^stat::peak_rss_mb: *//p' "$log") MB"
  else
    status=1
    echo "$name: FOUND an input, see $log and $OUT/found"
  fi
done

./segzero tests/fuzz/mutate.lua time="$TIME" found=$OUT/found || status=1
exit $status
