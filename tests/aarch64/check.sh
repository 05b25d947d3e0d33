#!/bin/sh
# Runs the op table of the aarch64 build in the emulator and counts what was reached. `make
# aarch64-check` calls it, from the root of the repository.
#
#   tests/aarch64/check.sh "qemu-aarch64-static -L build/aarch64/sysroot build/aarch64/segzero" ARGS
#
# Prints a line for each op as it is done, and at the end how many ops of runtime/ops/ops.def ran
# with how many calls. Fails if a check failed, if the program ended early, or if an op has no line.
# ARGS go to tests/unit/test_ops.lua; with op=a,b only these ops have to be reached.
# Environment: JOBS, the processes at a time (1). Each takes every JOBS-th op.
# Leaves out: the workspace of calls over 1e9 operations, which take minutes each; each is printed
# as a skip, and flops=1e12 runs them.
set -eu
program=$1
shift
JOBS=${JOBS:-1}

ops=$(sed -n 's/^SZ_OP(\([a-z0-9_]*\),.*/\1/p' runtime/ops/ops.def)
for word in "$@"; do
    case $word in op=*) ops=$(echo "${word#op=}" | tr , ' ') ;; esac
done

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# One process: the ops whose place in the list is $1 of JOBS. The last op= counts.
run() {
    mine=$(echo $ops | tr ' ' '\n' | awk -v n="$1" -v of="$JOBS" 'NR % of == n % of' | paste -sd, -)
    shift
    [ -n "$mine" ] || return 0
    $program tests/unit/test_ops.lua times=1 flops=1e9 "$@" "op=$mine" 2>&1
}

k=1
while [ $k -le "$JOBS" ]; do
    { run $k "$@" || echo "the program ended with status $?"; } | tee "$logs/$k" &
    k=$((k + 1))
done
wait

# A line of an op: NAME N calls, N with gradients, SECONDS s
cat "$logs"/* | awk -v ops="$(echo $ops)" '
    / calls, .* with gradients, / { calls[$1] += $2; gradients[$1] += $4 }
    /^the program ended/ { status = 1 }
    /^skip: time for .* the workspace of/ { skipped++ }
    / checks, [0-9]+ failed$/ { checks += $1; failed += $3 }
    END {
        count = split(ops, names, " ")
        for (i = 1; i <= count; i++) {
            name = names[i]
            if (calls[name] > 0) { reached++; all += calls[name]; graded += gradients[name] }
            else print "not reached: " name
        }
        printf "%d of %d ops, %d calls, %d of them with gradients; %d checks, %d failed; ",
               reached, count, all, graded, checks, failed
        printf "the workspace of %d ops was not checked\n", skipped
        exit !(count > 0 && reached == count && checks > 0 && failed == 0 && !status)
    }'
