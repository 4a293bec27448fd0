#!/usr/bin/env bash
# From a fresh checkout on Debian 12 or Ubuntu 24.04 to weighted samples of a posterior: install what is missing, build,
# fetch a small model, start the server, ask it one question, stop it. Run again it takes seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

TMPDIR=$(mktemp -d)
export TMPDIR # what the tools below leave there goes with it
server=

stop_server() {
    if [[ -n $server ]]; then
        kill "$server" 2> /dev/null || true
        wait "$server" 2> /dev/null || true
    fi
    server=
}

clean_up() {
    trap '' INT TERM HUP
    stop_server
    rm -rf "$TMPDIR"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# stage TEXT COMMAND...: one line if it goes well, all it said if it does not. What it prints is left in $TMPDIR/out.
stage() {
    local start=$SECONDS
    printf '%-52s' "$1 ..."
    shift
    if ! "$@" > "$TMPDIR/out" 2> "$TMPDIR/log" < /dev/null; then
        printf 'failed\n\n' && cat "$TMPDIR/out" "$TMPDIR/log" >&2
        exit 1
    fi
    printf 'done, %d s\n' $((SECONDS - start))
}

build() {
    cmake --preset release -DCLOTHO_WERROR=OFF -DCLOTHO_TESTS=OFF && cmake --build --preset release
}

server_url() {
    sed -nE 's|.*(http://[0-9.]+:[0-9]+).*|\1|p' "$TMPDIR/server.log" | head -n 1
}

start_server() {
    build/release/clotho serve --model "$1" --port 0 > "$TMPDIR/server.log" 2>&1 &
    server=$!
    until [[ -n $(server_url) ]]; do
        if ! kill -0 "$server" 2> /dev/null; then
            cat "$TMPDIR/server.log" >&2
            return 1
        fi
        sleep 0.05
    done
    server_url
}

ask() { # ask URL REQUEST
    curl -sSN --json "$2" "$1/v1/sample" | python3 deploy/show.py
}

stage "Packages of the system" deploy/install-deps.sh
stage "Build (build/release/clotho)" build
stage "Model: SmolLM2-135M-Instruct, 95 MB" deploy/fetch-model.sh
model=$(< "$TMPDIR/out")
stage "Server" start_server "$model"
url=$(< "$TMPDIR/out")

echo
echo "Infilling: 256 samples for the hole in \"The weather was so ___ that we stayed at home.\""
ask "$url" '{"prompt": "The weather was so", "particles": 256, "max_tokens": 4, "seed": 1,
    "potential": {"type": "continuation", "text": " that we stayed at home."}}'
stop_server
cat << TEXT

The server is stopped again. To go on:
  build/release/clotho serve --model $model
  curl -sN http://127.0.0.1:8080/v1/sample --json '{"prompt": "My favourite animal is a", "particles": 32,
      "max_tokens": 16, "potential": {"type": "contains", "text": "cat"}}' | deploy/show.py
  build/release/clotho sample --model $model --particles 32 "Once upon a time"
  tests/run.sh
README.md has more examples; \`clotho serve --help\` has every setting.
TEXT
