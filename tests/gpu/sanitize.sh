#!/usr/bin/env bash
# Tests of operations on the GPU under compute-sanitizer: all tools over all tests, side by side, as each is slow and
# leaves most of the machine idle.
set -uo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: tests/gpu/sanitize.sh SECONDS TEST...     test programs; the seconds are for each"
    exit 2
fi
limit=$1
shift
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export CLOTHO_TEST_SIZE=small OMP_NUM_THREADS=1

sanitize() { # sanitize TOOL TEST
    local only=()
    [[ $1 == memcheck ]] || only=(--kernel-name kns=_kernel) # our own: the other tools take long for cuBLASLt's
    timeout --kill-after=5 "$limit" compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 "${only[@]}" \
        "$2" cuda > "$logs/$1.$(basename "$2")" 2>&1 < /dev/null
}

failed=0 names=() pids=()
for tool in memcheck racecheck synccheck initcheck; do
    for test in "$@"; do
        sanitize "$tool" "$test" &
        pids+=($!) names+=("$tool.$(basename "$test")")
    done
done
for i in "${!pids[@]}"; do
    wait "${pids[i]}"
    status=$?
    printf -- '-- %s: status %d\n' "${names[i]}" "$status"
    tail -n 40 "$logs/${names[i]}"
    if [[ $status != 0 ]]; then
        failed=1
    fi
done
exit $failed
