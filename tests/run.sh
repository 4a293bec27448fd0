#!/usr/bin/env bash
# All tests, from a fresh checkout to one last line "N passed, N failed, N skipped". Details are in build/logs;
# a stage that fails shows the end of its log. CLOTHO_TEST_DATA names a folder with further test data, if there is one.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

stages=(rules unit golden python cuda asan tsan fuzz)

usage() {
    cat <<TEXT
usage: tests/run.sh [STAGE...]     all stages, or those named:
  rules    who includes whom, banned functions, format
  unit     release build without warnings, C tests
  golden   real models against other implementations; fetches SmolLM2-135M-Instruct (95 MB) once
  python   tests against enumeration, of the program and over HTTP, on the release build
  cuda     the CUDA plug-in, without warnings, where there is nvcc; C tests and some in Python on the emulated device
  asan     C and HTTP tests under AddressSanitizer and UndefinedBehaviorSanitizer
  tsan     C and HTTP tests under ThreadSanitizer
  fuzz     every libFuzzer target for ${FUZZ_SECONDS:-30} s (FUZZ_SECONDS)
TEXT
}

logs=$PWD/build/logs
venv=$PWD/build/venv
mkdir -p "$logs"
cores=$(nproc) # which goes by OMP_NUM_THREADS, too
export OMP_NUM_THREADS=1 # the tests are many small programs; and ThreadSanitizer cannot see into libgomp
export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

total_passed=0 total_failed=0 total_skipped=0

# Every stage adds to these three and writes what it has to say to its log, which is its standard output.
passed=0 failed=0 skipped=0

check() { # check COMMAND...: one test, passed if the command succeeds
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $*"
    fi
}

# Add up the JUnit report $1 of a runner that exited with $2. A runner that broke before it wrote one is a failure.
count_report() {
    local p=0 f=0 s=0
    read -r p f s < <(python3 - "$1" << 'PYTHON'
import sys, xml.etree.ElementTree as tree

root = tree.parse(sys.argv[1]).getroot()
suites = [root] if root.tag == "testsuite" else root.findall("testsuite")
total = lambda *names: sum(int(s.get(n, 0)) for s in suites for n in names)
tests, bad, skipped = total("tests"), total("failures", "errors"), total("skipped", "disabled")
print(tests - bad - skipped, bad, skipped)
PYTHON
    )
    passed=$((passed + p)) skipped=$((skipped + s)) failed=$((failed + f))
    if [[ $2 != 0 && $f == 0 ]]; then
        failed=$((failed + 1))
        echo "FAILED: the test runner itself (exit status $2)"
    fi
}

build() { # build PRESET
    cmake --preset "$1" && cmake --build --preset "$1"
}

run_ctest() { # run_ctest PRESET [ARGUMENTS...]
    local report=$logs/ctest-$1.xml
    rm -f "$report"
    "${fixed_addresses[@]}" ctest --preset "$1" --parallel "$cores" --no-tests=error \
        --output-junit "$report" "${@:2}"
    count_report "$report" $?
}

run_pytest() { # run_pytest PRESET PATHS...: against the program of that build
    local report=$logs/pytest-$1.xml
    rm -f "$report"
    CLOTHO_BIN=$PWD/build/$1/clotho \
        "${fixed_addresses[@]}" "$venv/bin/python" -m pytest -q -ra --durations=5 --numprocesses 2 --dist loadfile \
        --junitxml="$report" "${@:2}"
    count_report "$report" $?
}

banned_functions() {
    ! git grep -nE '\b(v?sprintf|strcpy|strcat|strtok|gets|atoi)\s*\(' -- '*.c' '*.h' '*.cu' '*.cuh'
}

formatted() {
    git ls-files -z '*.c' '*.h' '*.cu' '*.cuh' '*.cpp' | xargs -0 "$venv/bin/clang-format" --dry-run --Werror
}

stage_rules() {
    check tests/include_rules.sh
    check banned_functions
    check formatted
}

stage_unit() {
    build release || return 1
    run_ctest release --exclude-regex golden --label-exclude emu
}

fetch_model() {
    CLOTHO_TEST_MODEL=$(deploy/fetch-model.sh) && export CLOTHO_TEST_MODEL
}

stage_golden() {
    build release && fetch_model && run_ctest release --tests-regex golden
}

stage_python() {
    build release && fetch_model && run_pytest release tests
}

stage_cuda() {
    build release || return 1
    if [[ -e build/release/libclotho-cuda.so ]]; then
        check "$venv/bin/python" tests/gpu/kernels.py
    else
        echo "nvcc is not here: no plug-in is built, only the emulated one"
    fi
    run_ctest release --label-regex emu
    CLOTHO_TEST_BACKEND=cuda LD_LIBRARY_PATH=$PWD/build/release/emu run_pytest release tests -m device
}

stage_asan() {
    build asan || return 1
    run_ctest asan --exclude-regex golden --label-exclude emu
    run_pytest asan tests/http
}

stage_tsan() {
    build tsan || return 1
    run_ctest tsan --tests-regex '^test_(engine|event_queue)' # where threads meet
    run_pytest tsan tests/http
}

fuzz() { # fuzz NAME: from its committed seeds and what earlier runs here have found
    local corpus=build/fuzz/corpus/$1 words=()
    mkdir -p "$corpus"
    [[ -f tests/fuzz/$1.dict ]] && words=("-dict=tests/fuzz/$1.dict")
    "build/fuzz/tests/$1" "${words[@]}" -max_total_time="${FUZZ_SECONDS:-30}" -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="build/fuzz/$1-" "$corpus" "tests/fuzz/seeds/${1#fuzz_}"
}

stage_fuzz() {
    local names
    names=$(basename -s .c tests/fuzz/fuzz_*.c)
    # shellcheck disable=SC2086 # a word each
    cmake --preset fuzz && cmake --build --preset fuzz --target $names || return 1
    local source
    for source in tests/fuzz/fuzz_*.c; do
        check fuzz "$(basename "$source" .c)"
    done
}

# ThreadSanitizer of gcc 12 and 13 needs the address layout of older kernels where these randomise more bits.
fixed_addresses=()
if setarch "$(uname -m)" -R true 2> /dev/null; then
    fixed_addresses=(setarch "$(uname -m)" -R)
fi

set_up() {
    deploy/install-deps.sh --tests || return 1
    if ! cmp -s tests/requirements.txt "$venv/requirements.txt"; then
        python3 -m venv --clear "$venv" &&
            "$venv/bin/python" -m pip install -q --disable-pip-version-check -r tests/requirements.txt &&
            cp tests/requirements.txt "$venv/requirements.txt"
    fi
}

# Run a stage: one line on the terminal, all its output in its log, its counts into the totals.
run_stage() {
    local name=$1 log=$logs/$1.log start=$SECONDS
    passed=0 failed=0 skipped=0
    "stage_$name" > "$log" 2>&1 < /dev/null || failed=$((failed + 1))
    printf '%-8s %4d passed, %d failed, %d skipped %8d s\n' "$name" "$passed" "$failed" "$skipped" $((SECONDS - start))
    if [[ $failed != 0 ]]; then
        echo "--- the end of $log"
        tail -n 60 "$log"
        echo "---"
    fi
    total_passed=$((total_passed + passed)) total_failed=$((total_failed + failed))
    total_skipped=$((total_skipped + skipped))
}

for argument in "$@"; do
    case " ${stages[*]} " in
        *" $argument "*) ;;
        *) usage; [[ $argument == -h || $argument == --help ]]; exit $(($? * 2)) ;;
    esac
done
[[ $# != 0 ]] && stages=("$@")

if ! set_up > "$logs/setup.log" 2>&1; then
    tail -n 30 "$logs/setup.log"
    echo "0 passed, 1 failed"
    exit 1
fi
for stage in "${stages[@]}"; do
    run_stage "$stage"
done
echo "$total_passed passed, $total_failed failed, $total_skipped skipped"
[[ $total_failed == 0 ]]
