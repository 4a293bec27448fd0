#!/usr/bin/env bash
# Everything that a machine with a GPU is needed for, in one call of less than nine minutes. The machine needs CUDA 13 with
# its compiler, a C and C++ compiler, cmake, ninja, python3, for the comparison PyTorch; none of the program's libraries.
# Without a GPU the same runs on the emulated device, with tiny shapes: that tests this script and times nothing.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

if [[ $# != 1 || $1 == -* ]]; then
    cat << 'TEXT'
usage: tests/gpu/check.sh OUTDIR
Builds kernels and what of core needs no library; runs the operations' tests on the CPU and the GPU, again under
compute-sanitizer, and a model's rows alone and together; times operations and decode steps against what the device can
do at most, and the same steps in PyTorch. Logs and tables go to OUTDIR, the tables also to the end of the output. What
fails does not keep the rest from running; the exit status is 1 if anything did. The card's settings stay as they are.
  CHECK_SECONDS=520   what does not begin or end within this is skipped or cut off
TEXT
    exit 2
fi

mkdir -p "$1" && out=$(realpath "$1") || exit 1
build=$PWD/build/gpu
seconds=${CHECK_SECONDS:-520}
failed=0
export OMP_NUM_THREADS=$(( ($(nproc) + 3) / 4 )) # four tests go at once
export PYTHONUNBUFFERED=1 PATH=$PATH:/usr/local/cuda/bin

# part NAME LOG LIMIT COMMAND...: a line on the terminal, the command's output behind what is in the log. The limit is in
# seconds, more on the emulated device.
part() {
    local name=$1 log=$out/$2.log limit=$(($3 * patience)) start=$SECONDS status before
    shift 3
    (( limit > seconds - SECONDS )) && limit=$((seconds - SECONDS))
    if (( limit <= 0 )); then
        printf '%-36s skipped: no time left\n' "$name"
        failed=1
        return 1
    fi
    printf '== %s\n' "$name" >> "$log"
    before=$(stat -c %s "$log")
    # In a shell of its own, which has nothing to say of a command that a signal ends.
    (exec timeout --kill-after=5 "$limit" "$@" >> "$log" 2>&1 < /dev/null) 2> /dev/null
    status=$?
    if (( status == 0 )); then
        printf '%-36s passed %6d s\n' "$name" $((SECONDS - start))
        return 0
    fi
    failed=1
    (( status == 124 || status == 137 )) && status="$status, out of time"
    printf '%-36s FAILED %6d s (status %s); its log ends:\n' "$name" $((SECONDS - start)) "$status"
    tail -c +$((before + 1)) "$log" | tail -n 8
    return 1
}

# beside NAME LOG LIMIT COMMAND...: a part that goes on while others run, until `meet`, which brings it into the log.
jobs=()
beside() {
    part "$1" "$2.${#jobs[@]}" "${@:3}" &
    jobs+=("$! $2")
}

meet() {
    local i pid log
    for i in "${!jobs[@]}"; do
        read -r pid log <<< "${jobs[i]}"
        wait "$pid" || failed=1
        [[ -e $out/$log.$i.log ]] && cat "$out/$log.$i.log" >> "$out/$log.log" && rm "$out/$log.$i.log"
    done
    jobs=()
}

rm -f "$out"/{machine,build,tests,sanitizers,operations,decode,torch}*.log "$out/tables.txt"

# ---- what there is ----

if timeout 30 nvidia-smi -L > /dev/null 2>&1 || [[ -e /dev/nvidia0 ]]; then
    device=gpu
    timeout 30 nvidia-smi --query-gpu=name,memory.total,driver_version,power.limit,clocks.max.sm --format=csv,noheader
    targets=(clotho-cuda ceilings) library=$build/libclotho-cuda.so patience=1
    model=(135m 1024) rows=(64 1024) rows_shape=1b
    shapes=(1b 8b 135m) particles=(16 64 256 1024 2048) torch_device=()
    export CLOTHO_TEST_SIZE=large
else
    device=emulated
    echo "no GPU here: the emulated device and tiny shapes"
    targets=(clotho-cuda-emu) library=$build/emu/libclotho-cuda.so patience=5
    model=(tiny 40) rows=(5) rows_shape=tiny
    shapes=(tiny) particles=(1 5 40) torch_device=(--device cpu)
    export CLOTHO_TEST_SIZE=small
fi
export LD_LIBRARY_PATH=${library%/*}:${LD_LIBRARY_PATH:-}
tests=(test_ops test_learn test_propose test_populations)

about_machine() {
    local program
    uname -mr
    printf '%s processors, ' "$(nproc)"
    grep MemAvailable /proc/meminfo
    timeout 30 nvidia-smi
    for program in nvcc cc c++ cmake ninja cuobjdump compute-sanitizer python3; do
        printf '\n-- %s: ' "$program"
        command -v "$program" && timeout 30 "$program" --version
    done
    ldconfig -p | grep -E 'libcuda\.so|libcublasLt\.so'
    ls -d /usr/local/cuda*/{include/cublasLt.h,lib*/libcublasLt.so}
    return 0
}
about_machine > "$out/machine.log" 2>&1

# ---- build; meanwhile what needs the CPU alone ----

part configure build 60 cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCLOTHO_SERVER=OFF
part "build, tests" build 200 ninja -C "$build" -k 0 "${tests[@]}" test_alone bench_ops bench_decode
beside "build, ${targets[*]}" build 200 ninja -C "$build" -k 0 "${targets[@]}"
for test in "${tests[@]}"; do
    CLOTHO_TEST_REPORT=1 beside "$test on cpu" tests 120 "$build/tests/$test" cpu
done
meet

# ---- right ----

[[ -e $library ]] || echo "there is no $library: all that follows fails"
[[ $device == gpu ]] && beside "registers, spills, wide loads" build 60 tests/gpu/kernels.py "$library"
for test in "${tests[@]}"; do
    CLOTHO_TEST_REPORT=1 beside "$test on cuda" tests 120 "$build/tests/$test" cuda
done
beside "rows alone and among ${model[1]}" tests 90 "$build/tests/test_alone" cuda "${model[@]}"
meet

if [[ $device == gpu ]] && command -v compute-sanitizer > /dev/null; then
    part "compute-sanitizer" sanitizers 125 tests/gpu/sanitize.sh 110 "${tests[@]/#/$build/tests/}"
    grep -E '^-- .* status [^0]' "$out/sanitizers.log"
else
    echo "no compute-sanitizer, or no GPU for it: not run"
fi

# ---- fast: one after the other, for the device's whole speed ----

bandwidth=0 rate=0 # unknown
if [[ $device == gpu ]]; then
    part "what the device can do" operations 40 "$build/tests/ceilings"
    read -r bandwidth rate < <(tail -n 1 "$out/operations.log" | grep -E '^[0-9]+ [0-9]+$' || echo 0 0)
fi
part "operations" operations 60 "$build/tests/bench_ops" cuda "$rows_shape" "$bandwidth" "$rate" "${rows[@]}"
for shape in "${shapes[@]}"; do
    part "decode, $shape" decode 70 "$build/tests/bench_decode" cuda "$shape" "$bandwidth" "$rate" "${particles[@]}"
done
part "decode, $rows_shape, --fast" decode 40 \
    "$build/tests/bench_decode" cuda-fast "$rows_shape" "$bandwidth" "$rate" "${rows[@]}"
if timeout 60 python3 -c 'import torch' 2> /dev/null; then
    for shape in "${shapes[@]}"; do
        part "PyTorch, $shape" torch 70 tests/gpu/torch_decode.py "$shape" "${particles[@]}" "${torch_device[@]}"
    done
else
    echo "no PyTorch here: no comparison"
fi

timeout 20 tests/gpu/tables.py "$out" | tee "$out/tables.txt"
[[ $failed == 0 ]] || echo "something FAILED, see above"
exit $failed
