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
#   ONLY="3b step" sh tests/gpu_check.sh     these stages alone        BUDGET=570     seconds for all; what would start after them is NOT RUN
#   PYTHON=python3                   a Python with torch that sees the GPU (transformers, sam2): the stages *_torch; without one they are left out
#
# Stages: device (doctor); ops (the op table on CUDA against the plain kernels, odd sizes, guard bytes), ops_no_cudnn (convolutions as matrix
# products); qwen, sam2, grpo (golden files of the reference packages); system (sampling, training, saving on the device against the processor);
#   3b, 3b_int8     the whole 3B with random weights: matmul rate, prefill of 1000 tokens around an 840 x 840 picture, decoding 1, 8, 128 answers;
#                   3b also forward and backward of a group
#   step            GRPO step of 16 prompts x 8 answers x 256 tokens, full fine-tuning of the 3B: moments and gradients in bf16, no f32 master
#                   weights (stochastic rounding): 10 bytes a parameter, 2 of them the reference's; activations are kept
#   step_exact      the same with f32 moments and master weights, gradients in bf16: 18 bytes a parameter, so activations are recomputed;
#                   with f32 gradients (20 bytes, 70 GiB) there is no room left on a card of 80 GB
#   sam2_f32, sam2_bf16   SAM2 large, pictures of 1024 x 1024                       *_torch, *_compiled: the same work by PyTorch
# curve (ten GRPO steps of the recipe in f32, the loss within 1e-3 of the processor's); bench_ops; memcheck (compute-sanitizer, if it is there).
# At the end a table of the figures: value, unit, part of the limit measured in the same run, PyTorch's value.
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
began=$(date +%s)
stage() {
    name=$1 limit=$2
    shift 2
    case " ${ONLY:-$name} " in *" $name "*) ;; *) return ;; esac
    start=$(date +%s)
    left=$((budget - start + began))
    if [ $left -lt 10 ]; then
        rm -f "$logs/$name.log"
        printf '%-16s %5d s  %-8s %s\n' "$name" 0 "NOT RUN" "the $budget s for all are over"
        failed=1
        return
    fi
    limit=$((limit * room))
    [ $limit -le $left ] || limit=$left
    timeout "$limit" "$@" >"$logs/$name.log" 2>&1
    rc=$?
    case $rc in 0) verdict=ok ;; 124) verdict="TIMEOUT" ;; *) verdict=FAILED ;; esac
    shown=$(grep -a ' checks, ' "$logs/$name.log" | tail -n 1)
    [ -n "$shown" ] || shown=$(tail -n 1 "$logs/$name.log")
    printf '%-16s %5d s  %-8s %.90s\n' "$name" $(($(date +%s) - start)) "$verdict" "$shown"
    [ $rc -eq 0 ] && return
    failed=1
    grep -a -i 'failed\|error\|not enough\|out of memory' "$logs/$name.log" | tail -n 5 | sed 's/^/    /'
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

# The evaluation at the recipe's end is not what is compared: few rows.
curve_args="trainer.val_before_train=false trainer.save_freq=-1 data.refshapes_val_rows=8"
if [ -n "$quick" ]; then            # the emulator's machine may be busy: limits that only end what hangs
    budget=${BUDGET:-7200} room=10 ops=most=300 curve_args="$curve_args trainer.max_steps=1 data.rollout_batch_size=1 worker.actor.global_batch_size=1 worker.rollout.n=2 data.max_response_length=12 data.refshapes_val_rows=1 worker.reward.sam2_path=none"
    model="model=tests/bench/bench_mini.json side=64" sam2="sizes=mini side=64 best=1"
    step="$model prompts=2 n=2 tokens=4 picture=112 prompt_tokens=40" step_torch="--prompts-timed 1 --answers-timed 2"
else
    budget=${BUDGET:-570} room=1 ops="" curve_args="$curve_args trainer.max_steps=10"
    model="model=3b" sam2="sizes=large"
    step="$model prompts=16 n=8 tokens=256 warm=1" step_torch="--answers-timed 32"
fi
if [ "${1:-}" = curve ]; then       # a stage of its own process, so that it can be timed out
    shift
    curve "$@"
    exit
fi

PYTHON=${PYTHON:-python3}
seen=$(timeout 120 "$PYTHON" -c 'import torch, transformers
print("cuda" if torch.cuda.is_available() else "cpu")' 2>/dev/null)
torch=
if [ "$seen" = cuda ]; then torch=cuda
elif [ "$seen" = cpu ] && [ -n "$quick" ]; then torch=cpu
else echo "no PyTorch beside: $PYTHON has no torch with transformers that sees the GPU (PYTHON= names another)"
fi
# The peer's turn: NAME LIMIT COMMAND... as of stage.
peer() { [ -z "$torch" ] || stage "$@"; }

[ -n "${ONLY:-}" ] || rm -f "$logs"/*.log        # figures of other stages that an earlier call left are shown, too
stage device 30 "$sz" --device cuda -e 'local sz = require "segzero"; assert(#sz.devices() == 2, "no device"); require("segzero.tools.doctor").run()'
stage ops 120 "$sz" tests/unit/test_ops.lua device=cuda $ops
stage ops_no_cudnn 30 env SEGZERO_CUDNN=0 sh -c 'for op in conv2d conv_transpose2d; do "$0" tests/unit/test_ops.lua device=cuda op=$op || exit 1; done' "$sz"
[ -n "$quick" ] || stage qwen 60 "$sz" --device cuda tests/unit/test_qwen_vl.lua
[ -n "$quick" ] || stage sam2 60 "$sz" --device cuda tests/unit/test_sam2.lua
stage grpo 60 "$sz" --device cuda tests/unit/test_grpo.lua
[ -n "$quick" ] || stage system 60 env SEGZERO_CUDA_TEST="${SEGZERO_CUDA_LIBRARY:-${sz%segzero}libsegzero_cuda.so}" "$sz" tests/unit/test_cuda_emulated.lua

stage 3b 75 "$sz" tests/bench/bench.lua device=cuda dtype=bf16 $model only=prefill,vision,train
stage 3b_int8 45 "$sz" tests/bench/bench.lua device=cuda dtype=int8 $model only=prefill
compact="worker.actor.grad_dtype=bf16 worker.actor.optim.state_dtype=bf16 worker.actor.optim.master_weights=false"
stage step 90 "$sz" tests/bench/bench_step.lua device=cuda dtype=bf16 $step $compact recompute=false save="$logs/step" save_weights=false
stage step_exact 75 "$sz" tests/bench/bench_step.lua device=cuda dtype=bf16 $step worker.actor.grad_dtype=bf16 recompute=true
for dtype in f32 bf16; do
    stage sam2_$dtype 40 "$sz" tests/bench/bench_sam2.lua device=cuda dtype=$dtype $sam2 train=0
done

peer 3b_torch 90 "$sz" tests/bench/bench.lua device=$torch dtype=bf16 $model only=peer python="$PYTHON"
peer step_torch 150 "$PYTHON" tests/bench/bench_step.py "$logs/step" --device $torch $step_torch
"$PYTHON" -c 'import sam2' 2>/dev/null || torch=
for dtype in f32 bf16; do
    peer sam2_${dtype}_torch 45 "$sz" tests/bench/bench_sam2.lua device=$torch dtype=$dtype $sam2 train=0 python="$PYTHON" only=peer
done
stage curve 120 sh tests/gpu_check.sh curve $curve_args
[ -n "$quick" ] || peer sam2_bf16_compiled 120 "$sz" tests/bench/bench_sam2.lua device=$torch dtype=bf16 $sam2 train=0 python="$PYTHON" only=compiled
[ -n "$quick" ] || stage bench_ops 60 "$sz" tests/unit/test_ops.lua bench device=cuda
[ -n "$quick" ] || stage bench_no_cudnn 20 env SEGZERO_CUDNN=0 "$sz" tests/unit/test_ops.lua bench conv2d device=cuda
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
# Our own convolutions: of cuDNN's the guard bytes of the stage ops see what is written beside.
[ -z "$sanitizer" ] || [ -n "$quick" ] || stage memcheck 90 env SEGZERO_CUDNN=0 "$sanitizer" --error-exitcode 9 "$sz" tests/unit/test_ops.lua device=cuda most=3000

echo
[ ! -f "$logs/bench_ops.log" ] || cat "$logs/bench_ops.log"
[ ! -f "$logs/bench_no_cudnn.log" ] || { echo "without cuDNN:"; tail -n +2 "$logs/bench_no_cudnn.log"; }
figures=
for group in 3b,3b_torch 3b_int8 step,step_torch step_exact sam2_f32,sam2_f32_torch sam2_bf16,sam2_bf16_torch sam2_bf16,sam2_bf16_compiled; do
    ours=${group%,*} theirs=
    case $group in *,*) theirs=${group#*,} ;; esac
    title=$ours
    case $theirs in *_compiled) [ -f "$logs/$theirs.log" ] || continue; title=$theirs ;; esac
    [ -f "$logs/$ours.log" ] || continue
    figures="$figures $title=$logs/$ours.log${theirs:+,$logs/$theirs.log}"
done
[ -z "$figures" ] || "$sz" tests/bench/bench_table.lua $figures
exit $failed
