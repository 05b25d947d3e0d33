#!/bin/sh
# gpu_check.sh - what only a machine with a GPU can show. Prints a line for each part, exits non-zero when one failed.
#
#   sh tests/gpu_check.sh [FOLDER FOR LOGS]       from the repository's root, after make on a machine with nvcc
#
# Parts: the doctor; the op table on CUDA against the plain kernels; test_cuda_emulated.lua's model, sampling and training
# checks on the real device (SEGZERO_CUDA_TEST); times of single ops. Draft: it has not run on a GPU yet.
# Leaves out: packing the libraries a bare machine lacks.
logs=${1:-build/gpu_check}
mkdir -p "$logs"
failed=0
part() {
    name=$1
    shift
    start=$(date +%s)
    if "$@" >"$logs/$name.log" 2>&1; then verdict=ok; else verdict=FAILED failed=1; fi
    printf '%-12s %5d s  %s\n' "$name" $(($(date +%s) - start)) "$verdict"
    [ "$verdict" = ok ] || tail -n 20 "$logs/$name.log"
}
part device ./segzero --device cuda -e 'local sz = require "segzero"; assert(#sz.devices() == 2); require("segzero.doctor").run()'
part ops ./segzero tests/test_ops.lua device=cuda
part model env SEGZERO_CUDA_TEST=build/libsegzero_cuda.so ./segzero tests/test_cuda_emulated.lua
part bench ./segzero tests/test_ops.lua bench device=cuda
cat "$logs/bench.log"
exit $failed
