#!/bin/sh
# Runs the embedded model of the aarch64 build in the emulator and compares what it says with this
# machine's program on its plainest kernels. `make aarch64-check` calls it, from the root of the
# repository.
#
#   tests/aarch64/model.sh "qemu-aarch64-static -L build/aarch64/sysroot build/aarch64/segzero" \
#       ./segzero
#
# Two comparisons: `segzero infer --demo` on one image, where the answer, the box, the points and
# the size of the mask must be equal; and one GRPO step of four answers, with every token id and
# reward equal, and the gradient's norm in its first four digits. The kernels sum in another order,
# so the last bits of a probability differ: a token could turn out otherwise, but the emulator
# computes the same each time.
# Leaves out: other models, dtypes other than f32, trained weights.
set -eu
emulated=$1
here=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
unset SEGZERO_CPU

run() { # NAME PROGRAM...
    name=$1
    shift
    "$@" infer --demo 3 output_path="$dir/$name.png" >"$dir/$name.infer" 2>&1
    "$@" --threads 1 recipes/refcocog_grpo.lua worker.rollout.n=4 data.rollout_batch_size=1 \
        worker.actor.global_batch_size=1 trainer.max_steps=1 trainer.val_before_train=false \
        data.refshapes_val_rows=1 trainer.save_freq=0 \
        trainer.save_checkpoint_path="$dir/$name" >"$dir/$name.train" 2>&1 ||
        { cat "$dir/$name.train"; exit 1; }

    # Without times and names of files.
    sed -e '/^wrote/d' -e 's/ in [0-9.]* s;/;/' -e 's/, [0-9.]* s$//' "$dir/$name.infer"
    grep -o '"ids":\[[0-9,]*\]' "$dir/$name/rollouts.jsonl"
    grep -o '"reward":[-0-9.e]*' "$dir/$name/rollouts.jsonl"
    grep -o '"grad_norm":[0-9]*\.[0-9]\{4\}' "$dir/$name/metrics.jsonl"
}
run here env SEGZERO_CPU=baseline "$here" >"$dir/want"
run emulated $emulated >"$dir/got"
diff "$dir/want" "$dir/got" || { echo "the embedded model differs from this machine's"; exit 1; }

tokens=$(grep -o '^"ids".*' "$dir/got" | tr , '\n' | grep -c .)
echo "the embedded model: the same answer to an image, the same $tokens tokens of a GRPO step"
