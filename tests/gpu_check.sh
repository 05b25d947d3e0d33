#!/bin/sh
# gpu_check.sh - what only a machine with a GPU can show, in ten minutes. Prints a row for each stage with its seconds, its figures and
# its verdict; goes on after a stage that fails or runs out of time, and exits non-zero if one did. Logs: build/gpu_check/.
#
#   sh tests/gpu_check.sh            from the repository's root, after make; or, on a machine that has nothing but CUDA and a driver,
#                                    with the build/bundle that `make bundle` left in the tree before it travelled
#   sh tests/gpu_check.sh quick      the same stages with little work: for the emulator, that is, to test this file
#                                    (SEGZERO_CUDA_LIBRARY=build/libsegzero_cuda_emulated.so)
#   sh tests/gpu_check.sh bundle     what `make bundle` runs: the libraries of a build (BUILT) and theirs into build/bundle
#
# Stages: device (doctor); ops (the op table on CUDA against the plain kernels, odd sizes, guard bytes); qwen, sam2, grpo (golden files of
# the reference packages); system (sampling, training, saving on the device against the processor); curve (ten GRPO steps of
# the recipe in f32, the loss within 1e-3 of the processor's); bench, bench_int8, bench_ops; memcheck (compute-sanitizer, if it is there).
set -u
bundle=build/bundle

if [ "${1:-}" = bundle ]; then
    built=${BUILT:-build}
    rm -rf "$bundle" && mkdir -p "$bundle/lib" || exit 1
    cp "$built/segzero" "$built/libsegzero.so" "$built/libsegzero_cuda.so" "$bundle/" || exit 1
    cjson=$(luajit -e 'print((assert(package.searchpath("cjson", package.cpath))))') || exit 1
    # All but the C library and what comes with CUDA and its driver.
    for lib in "$cjson" $(ldd "$bundle/segzero" "$bundle/libsegzero.so" "$cjson" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | sort -u |
                          grep -v '/\(libc\|libm\|libdl\|librt\|libpthread\|libcu[a-zA-Z]*\)\.so'); do
        cp -L "$lib" "$bundle/lib/" || exit 1
    done
    size=$(du -sm "$bundle" | cut -f1)
    echo "$bundle: $size MiB"
    [ "$size" -lt 64 ] || { echo "gpu_check: more than 64 MiB: narrow CUDA_ARCH" >&2; exit 1; }
    exit 0
fi

quick=
[ "${1:-}" = quick ] && quick=1
sz=./segzero
if [ -x "$bundle/segzero" ] && [ -z "${SEGZERO_CUDA_LIBRARY:-}" ]; then
    sz=$bundle/segzero
    LD_LIBRARY_PATH=$PWD/$bundle/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    LUA_CPATH="$PWD/$bundle/lib/?.so;;"
    export LD_LIBRARY_PATH LUA_CPATH
fi
logs=build/gpu_check
mkdir -p "$logs"
failed=0

# stage NAME LIMIT COMMAND...: one row of the table. What it shows is the last line that counts checks, else the last line.
stage() {
    name=$1 limit=$2
    shift 2
    start=$(date +%s)
    timeout "$limit" "$@" >"$logs/$name.log" 2>&1
    rc=$?
    case $rc in 0) verdict=ok ;; 124) verdict="TIMEOUT" ;; *) verdict=FAILED ;; esac
    shown=$(grep -a ' checks, ' "$logs/$name.log" | tail -n 1)
    [ -n "$shown" ] || shown=$(tail -n 1 "$logs/$name.log")
    printf '%-12s %5d s  %-8s %.90s\n' "$name" $(($(date +%s) - start)) "$verdict" "$shown"
    [ $rc -eq 0 ] && return
    failed=1
    grep -a -i 'failed\|error' "$logs/$name.log" | tail -n 5 | sed 's/^/    /'
}

# The losses of two runs' metrics.jsonl, step by step.
curve() {
    for device in cpu cuda; do
        rm -rf "$logs/curve_$device"
        "$sz" --device $device recipes/refcocog_grpo.lua trainer.save_checkpoint_path="$logs/curve_$device" "$@" || return 1
    done
    "$sz" -e 'local cjson = require "cjson"
        local function losses(device)
          local list = {}
          for line in io.lines(arg[1] .. "/curve_" .. device .. "/metrics.jsonl") do
            local row = cjson.decode(line)
            if row.loss then list[#list + 1] = row.loss end
          end
          return list
        end
        local a, b, worst = losses "cpu", losses "cuda", 0
        for i = 1, #a do worst = math.max(worst, math.abs(a[i] - (b[i] or 1 / 0))) end
        print(("%d steps, losses apart by at most %.2g"):format(#a, worst))
        os.exit(#a > 0 and #a == #b and worst <= 1e-3 and 0 or 1)' - "$logs" </dev/null
}

if [ -n "$quick" ]; then
    ops=most=300 curve_args="trainer.max_steps=1 trainer.val_before_train=false trainer.save_freq=-1 data.rollout_batch_size=1 worker.rollout.n=2" bench="model=tests/bench_mini.json side=64"
else
    ops="" curve_args="trainer.max_steps=10 trainer.val_before_train=false trainer.save_freq=-1" bench="model=tests/bench_wide.json"
fi
if [ "${1:-}" = curve ]; then       # a stage of its own process, so that it can be timed out
    shift
    curve "$@"
    exit
fi

stage device 30 "$sz" --device cuda -e 'local sz = require "segzero"; assert(#sz.devices() == 2, "no device"); require("segzero.doctor").run()'
stage ops 120 "$sz" tests/test_ops.lua device=cuda $ops
[ -n "$quick" ] || stage qwen 60 "$sz" --device cuda tests/test_qwen_vl.lua
[ -n "$quick" ] || stage sam2 60 "$sz" --device cuda tests/test_sam2.lua
stage grpo 60 "$sz" --device cuda tests/test_grpo.lua
[ -n "$quick" ] || stage system 60 env SEGZERO_CUDA_TEST="${SEGZERO_CUDA_LIBRARY:-${sz%segzero}libsegzero_cuda.so}" "$sz" tests/test_cuda_emulated.lua
stage curve 120 sh tests/gpu_check.sh curve $curve_args
for dtype in bf16 int8; do
    stage bench_$dtype 60 "$sz" tests/bench.lua device=cuda dtype=$dtype $bench only=$([ $dtype = bf16 ] && echo prefill,vision,train || echo prefill)
done
[ -n "$quick" ] || stage bench_ops 60 "$sz" tests/test_ops.lua bench device=cuda
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[ -z "$sanitizer" ] || [ -n "$quick" ] || stage memcheck 90 "$sanitizer" --error-exitcode 9 "$sz" tests/test_ops.lua device=cuda most=3000
cat "$logs"/bench_*.log
exit $failed
