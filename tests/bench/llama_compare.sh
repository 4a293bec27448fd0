#!/usr/bin/env bash
# Rows a second of `clotho bench` (SMC included) and of llama.cpp's llama-batched-bench (plain decoding of as many
# sequences, without sampling), on the same file with the same threads. They take turns, so that what else
# the machine does hits both alike; medians of the rounds, and of the rounds' ratios.
set -euo pipefail

usage() {
    cat <<TEXT
usage: tests/bench/llama_compare.sh LLAMA_BATCHED_BENCH MODEL [CLOTHO]

  LLAMA_BATCHED_BENCH  llama.cpp's program of that name
  MODEL                a .gguf file
  CLOTHO               default: build/release/clotho

From the environment: PARTICLES ($particles), PROMPT_TOKENS ($prompt), TOKENS ($tokens), ROUNDS ($rounds), THREADS ($threads).
TEXT
}

particles=${PARTICLES:-1,16,64,256}
prompt=${PROMPT_TOKENS:-32}
tokens=${TOKENS:-64}
rounds=${ROUNDS:-3}
threads=${THREADS:-$(nproc)}
if (($# < 2 || $# > 3)); then
    usage >&2
    exit 2
fi
llama=$1 model=$2 clotho=${3:-$(dirname "$0")/../../build/release/clotho}

results=$(mktemp)
trap 'rm -f "$results"' EXIT
most=$(tr , '\n' <<<"$particles" | sort -n | tail -1)

for ((i = 1; i <= rounds; i++)); do
    echo "round $i of $rounds: llama.cpp" >&2
    "$llama" -m "$model" -npp "$prompt" -ntg "$tokens" -npl "$particles" -pps -t "$threads" \
        -c $((prompt + most * tokens + 256)) -b 2048 -ub 512 --output-format jsonl 2>/dev/null |
        grep '"speed_tg"' >>"$results"
    echo "round $i of $rounds: clotho" >&2
    "$clotho" bench --model "$model" --particles "$particles" --prompt-tokens "$prompt" --tokens "$tokens" \
        --repeat 1 --threads "$threads" --json 2>/dev/null >>"$results"
done

python3 - "$results" <<'PYTHON'
import json, statistics, sys

peer, ours, smc, device = {}, {}, {}, ""
for line in open(sys.argv[1]):
    row = json.loads(line)
    if "speed_tg" in row:
        peer.setdefault(row["pl"], []).append(row["speed_tg"])
    elif "particles" in row:
        ours.setdefault(row["particles"], []).append(row["rows_per_second"])
        smc.setdefault(row["particles"], []).append(row["smc_percent"])
    else:
        device = f"{row['model']} on {row['device']}"
median = statistics.median
print(device)
print("rows  llama.cpp/s  clotho/s  ratio  SMC %")
for k in peer:
    ratio = median(o / p for o, p in zip(ours[k], peer[k]))
    print(f"{k:4} {median(peer[k]):12.0f} {median(ours[k]):9.0f} {ratio:6.2f} {median(smc[k]):6.1f}")
PYTHON
