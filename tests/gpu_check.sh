#!/bin/sh
# gpu_check.sh - what only a machine with a GPU can show, in ten minutes. It first prints the card,
# the driver and the library versions. Then it prints one row for each stage with its seconds, its
# verdict and its figures. It goes on after a stage that fails or times out, and exits non-zero if
# one did. Logs: build/gpu_check/.
#
#   sh tests/gpu_check.sh           from the repository's root, after make; or, on a machine that
#   has
#                                   nothing but CUDA and a driver, with the folder build/bundle that
#                                   `make bundle` made before the tree was copied there
#   sh tests/gpu_check.sh quick     the same stages with little work, to test this file on the
#   emulator
#                                   (SEGZERO_CUDA_LIBRARY=build/libsegzero_cuda_emulated.so)
#   sh tests/gpu_check.sh bundle    what `make bundle` runs: copies the libraries of a build
#   (BUILT),
#                                   and the libraries they need, to build/bundle
#
#   ONLY="3b step" sh tests/gpu_check.sh     runs these stages only
#   BUDGET=570                      seconds for everything; a stage that would start later is NOT
#   RUN PYTHON=python3                  a Python with torch that sees the GPU (transformers, sam2),
#   for the
#                                   stages *_torch; without one they are skipped
#
# Stages:
#   device          the doctor
#   ops             the op table on CUDA against the reference kernels: odd sizes, guard bytes
#   ops_no_cudnn    convolutions as matrix products
#   qwen, sam2, grpo  golden files of the reference packages
#   system          sampling, training and saving on the device against the CPU
#   3b, 3b_int8     the whole 3B model with random weights: matmul rate, prefill of 1000 tokens
#   around
#                   an 840 x 840 image, decoding of 1, 8 and 128 answers; 3b also runs a group
#                   forward and backward
#   step            a GRPO step of 16 prompts x 8 answers x 256 tokens, full fine-tuning of the 3B
#                   model: moments and gradients in bf16, no f32 master weights (stochastic
#                   rounding). That is 10 bytes a parameter, 2 of them the reference model's.
#                   Activations are kept.
#   step_exact      the same with f32 moments and master weights, gradients in bf16: 18 bytes a
#                   parameter, so activations are recomputed. With f32 gradients (20 bytes, 70 GiB)
#                   an 80 GB card has no room left.
#   sam2_f32, sam2_bf16       SAM2 large, images of 1024 x 1024
#   *_torch, *_compiled       the same work by PyTorch
#   ranks           two ranks on this machine, if mpirun is there or --ranks works without it: every
#                   collective on devices, then a GRPO step of a model split over both. With one
#                   card they share it, and since NCCL refuses that, tensors pass through host
#                   memory; with two or more cards NCCL is used. The figures say which.
#   curve           ten GRPO steps of the recipe in f32; the loss is within 1e-3 of the CPU's
#   bench_ops, bench_no_cudnn the time of each op
#   memcheck        compute-sanitizer, if installed
# A table of the figures ends the output: value, unit, share of the limit measured in the same run,
# PyTorch's value.
set -u
bundle=build/bundle

# ---- bundle ----
if [ "${1:-}" = bundle ]; then
    built=${BUILT:-build}
    rm -rf "$bundle" && mkdir -p "$bundle/lib" || exit 1
    cp "$built/segzero" "$built/libsegzero.so" "$built/libsegzero_cuda.so" "$bundle/" || exit 1
    cjson=$(luajit -e 'print((assert(package.searchpath("cjson", package.cpath))))') || exit 1
    # Every library except the C library and what comes with CUDA and its driver.
    needed=$(ldd "$bundle/segzero" "$bundle/libsegzero.so" "$cjson" |
             sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | sort -u |
             grep -v '/\(libc\|libm\|libdl\|librt\|libpthread\|libcu[a-zA-Z]*\)\.so')
    for lib in "$cjson" $needed; do
        cp -L "$lib" "$bundle/lib/" || exit 1
    done
    size=$(du -sm "$bundle" | cut -f1)
    echo "$bundle: $size MiB"
    [ "$size" -lt 64 ] || { echo "gpu_check: more than 64 MiB: narrow CUDA_ARCH" >&2; exit 1; }
    exit 0
fi

# ---- which program ----
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

# ---- running a stage ----
# stage NAME LIMIT COMMAND...: runs the command for at most LIMIT seconds and prints one row. The
# figures are the last line that counts checks, else the last line.
began=$(date +%s)
stage() {
    name=$1 limit=$2
    shift 2
    case " ${ONLY:-$name} " in *" $name "*) ;; *) return ;; esac
    start=$(date +%s)
    left=$((budget - start + began))
    if [ $left -lt 10 ]; then
        rm -f "$logs/$name.log"
        printf '%-16s %5d s  %-8s %s\n' "$name" 0 "NOT RUN" "the budget of $budget s is used up"
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
    seconds=$(($(date +%s) - start))
    printf '%-16s %5d s  %-8s %.90s\n' "$name" $seconds "$verdict" "$shown"
    [ $rc -eq 0 ] && return
    failed=1
    grep -a -i 'failed\|error\|not enough\|out of memory' "$logs/$name.log" | tail -n 5 |
        sed 's/^/    /'
}

# Runs the recipe on both devices and compares the losses of their metrics.jsonl, step by step.
curve() {
    for device in cpu cuda; do
        rm -rf "$logs/curve_$device"
        "$sz" --device $device recipes/refcocog_grpo.lua \
            trainer.save_checkpoint_path="$logs/curve_$device" "$@" || return 1
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
        local a = losses "cpu"
        local b = losses "cuda"
        local worst = 0
        for i = 1, #a do worst = math.max(worst, math.abs(a[i] - (b[i] or 1 / 0))) end
        print(("%d steps, losses differ by at most %.2g"):format(#a, worst))
        local ok = #a > 0 and #a == #b and worst <= 1e-3
        os.exit(ok and 0 or 1)' - "$logs" </dev/null
}

# Two ranks: every collective, and a step of the miniature model in two shards.
ranks() {
    export SEGZERO_SHARE_DEVICE=1
    "$sz" --ranks 2 tests/support/comm_ranks.lua cuda || return 1
    "$sz" --device cuda --ranks 2 recipes/refcocog_grpo.lua trainer.max_steps=1 \
        trainer.val_before_train=false trainer.save_freq=-1 data.val_files=None \
        data.rollout_batch_size=2 worker.actor.global_batch_size=2 worker.rollout.n=2 \
        data.max_response_length=16 \
        worker.reward.sam2_path=none worker.rollout.tensor_parallel_size=2 \
        trainer.save_checkpoint_path="$logs/ranks" || return 1
    if grep -q 'through host memory' "$logs/ranks.log"; then
        echo "2 ranks, 2 shards: through host memory ($(grep -m 1 -o 'memory: .*' "$logs/ranks.log"))"
    else
        echo "2 ranks, 2 shards: by NCCL"
    fi
}

# ---- how much work ----
# The curve does not compare the evaluation at the recipe's end, so that has few rows.
curve_args="trainer.val_before_train=false trainer.save_freq=-1 data.refshapes_val_rows=8"
if [ -n "$quick" ]; then
    # The emulator's machine may be busy: the limits only end what hangs.
    budget=${BUDGET:-7200}
    room=10
    ops=most=300
    curve_args="$curve_args trainer.max_steps=1 data.rollout_batch_size=1"
    curve_args="$curve_args worker.actor.global_batch_size=1 worker.rollout.n=2"
    curve_args="$curve_args data.max_response_length=12 data.refshapes_val_rows=1"
    curve_args="$curve_args worker.reward.sam2_path=none"
    model="model=tests/bench/bench_mini.json side=64"
    sam2="sizes=mini side=64 best=1"
    step="$model prompts=2 n=2 tokens=4 image=112 prompt_tokens=40"
    step_torch="--prompts-timed 1 --answers-timed 2"
else
    budget=${BUDGET:-570}
    room=1
    ops=""
    curve_args="$curve_args trainer.max_steps=10"
    model="model=3b"
    sam2="sizes=large"
    step="$model prompts=16 n=8 tokens=256 warm=1"
    step_torch="--answers-timed 32"
fi
# The stages `curve` and `ranks` are processes of their own, so that they can time out.
if [ "${1:-}" = curve ]; then
    shift
    curve "$@"
    exit
fi
if [ "${1:-}" = ranks ]; then
    rm -rf "$logs/ranks"
    ranks
    exit
fi

# ---- the peer: PyTorch ----
PYTHON=${PYTHON:-python3}
seen=$(timeout 120 "$PYTHON" -c 'import torch, transformers
print("cuda" if torch.cuda.is_available() else "cpu")' 2>/dev/null)
torch=
if [ "$seen" = cuda ]; then torch=cuda
elif [ "$seen" = cpu ] && [ -n "$quick" ]; then torch=cpu
else echo "no PyTorch: $PYTHON has no torch and transformers that see the GPU (set PYTHON=)"
fi
# As stage, but skipped without PyTorch.
peer() { [ -z "$torch" ] || stage "$@"; }

# ---- the machine ----
# A stage's figures from an earlier call stay if ONLY is set.
[ -n "${ONLY:-}" ] || rm -f "$logs"/*.log
"$sz" --version | head -n 1
if command -v nvidia-smi >/dev/null 2>&1; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader |
        sed 's/^/card, driver, memory: /'
fi
"$sz" --device cuda doctor 2>&1 | grep -a '^cuda'

# ---- correctness ----
test="$sz --device cuda tests/unit"
library=${SEGZERO_CUDA_LIBRARY:-${sz%segzero}libsegzero_cuda.so}
stage device 30 "$sz" --device cuda -e 'local sz = require "segzero"
    assert(#sz.devices() == 2, "no device")
    require("segzero.tools.doctor").run()'
stage ops 120 "$sz" tests/unit/test_ops.lua device=cuda $ops
stage ops_no_cudnn 30 env SEGZERO_CUDNN=0 sh -c '
    for op in conv2d conv_transpose2d; do
        "$0" tests/unit/test_ops.lua device=cuda op=$op || exit 1
    done' "$sz"
[ -n "$quick" ] || stage qwen 60 $test/test_qwen_vl.lua
[ -n "$quick" ] || stage sam2 60 $test/test_sam2.lua
stage grpo 60 $test/test_grpo.lua
[ -n "$quick" ] ||
    stage system 60 env SEGZERO_CUDA_TEST="$library" "$sz" tests/unit/test_cuda_emulated.lua

stage ranks 60 sh tests/gpu_check.sh ranks

# ---- speed ----
bench="$sz tests/bench/bench.lua"
bench_step="$sz tests/bench/bench_step.lua"
bench_sam2="$sz tests/bench/bench_sam2.lua"
compact="worker.actor.grad_dtype=bf16 worker.actor.optim.state_dtype=bf16"
compact="$compact worker.actor.optim.master_weights=false"
stage 3b 75 $bench device=cuda dtype=bf16 $model only=prefill,vision,train
stage 3b_int8 45 $bench device=cuda dtype=int8 $model only=prefill
stage step 90 $bench_step device=cuda dtype=bf16 $step $compact recompute=false \
    save="$logs/step" save_weights=false
stage step_exact 75 $bench_step device=cuda dtype=bf16 $step worker.actor.grad_dtype=bf16 \
    recompute=true
for dtype in f32 bf16; do
    stage sam2_$dtype 40 $bench_sam2 device=cuda dtype=$dtype $sam2 train=0
done

peer 3b_torch 90 $bench device=$torch dtype=bf16 $model only=peer python="$PYTHON"
peer step_torch 150 "$PYTHON" tests/bench/bench_step.py "$logs/step" --device $torch $step_torch
"$PYTHON" -c 'import sam2' 2>/dev/null || torch=
for dtype in f32 bf16; do
    peer sam2_${dtype}_torch 45 $bench_sam2 device=$torch dtype=$dtype $sam2 train=0 \
        python="$PYTHON" only=peer
done
stage curve 120 sh tests/gpu_check.sh curve $curve_args
[ -n "$quick" ] ||
    peer sam2_bf16_compiled 120 $bench_sam2 device=$torch dtype=bf16 $sam2 train=0 \
        python="$PYTHON" only=compiled
[ -n "$quick" ] || stage bench_ops 60 "$sz" tests/unit/test_ops.lua bench device=cuda
[ -n "$quick" ] || stage bench_no_cudnn 20 env SEGZERO_CUDNN=0 \
    "$sz" tests/unit/test_ops.lua bench conv2d device=cuda
# Our own convolutions: the guard bytes of the stage ops show what cuDNN's write out of bounds.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[ -z "$sanitizer" ] || [ -n "$quick" ] ||
    stage memcheck 90 env SEGZERO_CUDNN=0 "$sanitizer" --error-exitcode 9 \
        "$sz" tests/unit/test_ops.lua device=cuda most=3000

# ---- the table ----
echo
[ ! -f "$logs/bench_ops.log" ] || cat "$logs/bench_ops.log"
if [ -f "$logs/bench_no_cudnn.log" ]; then
    echo "without cuDNN:"
    tail -n +2 "$logs/bench_no_cudnn.log"
fi
figures=
for group in 3b,3b_torch 3b_int8 step,step_torch step_exact sam2_f32,sam2_f32_torch \
             sam2_bf16,sam2_bf16_torch sam2_bf16,sam2_bf16_compiled; do
    ours=${group%,*} theirs=
    case $group in *,*) theirs=${group#*,} ;; esac
    title=$ours
    case $theirs in
    *_compiled)
        [ -f "$logs/$theirs.log" ] || continue
        title=$theirs
        ;;
    esac
    [ -f "$logs/$ours.log" ] || continue
    figures="$figures $title=$logs/$ours.log${theirs:+,$logs/$theirs.log}"
done
[ -z "$figures" ] || "$sz" tests/bench/bench_table.lua $figures
exit $failed
