#!/usr/bin/env bash
# Measure this machine behind nginx and write docs/load.md: streams of /v1/sample at 1, 16, 128 and 1,024 clients, an open
# loop, the same model in `clotho bench` before and after, and how many events the HTTP layer alone can move. About five
# minutes on a machine that does nothing else; server, nginx and clients share its cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage() {
    cat <<'TEXT'
usage: deploy/load/report.sh [MODEL] [OUT]     default: the model of deploy/fetch-model.sh, docs/load.md
Needs a release build with tests, nginx, wrk, openssl, and Python with aiohttp ($PYTHON, else build/venv/bin/python).
SCALE=0.1 makes all runs ten times shorter, to try it out.
TEXT
}

[[ ${1:-} == -* ]] && { usage; exit 2; }
model=${1:-$(deploy/fetch-model.sh)}
out=${2:-docs/load.md}
python=${PYTHON:-build/venv/bin/python}
scale=${SCALE:-1}
server_port=18080 stub_port=18081 nginx_port=18443
request=(--prompt Once --particles 2 --max-tokens 16)
server_flags=(--max-running-particles 2048 --max-queue 1024 --max-connections 2100 --kv-memory 3G --log-level warn)

dir=$(mktemp -d)
pids=()
clean_up() {
    [[ ${#pids[@]} == 0 ]] || kill "${pids[@]}" 2> /dev/null || true
    wait
    rm -rf "$dir"
}
trap clean_up EXIT

seconds() { awk -v s="$scale" -v t="$1" 'BEGIN { printf "%g", s * t }'; }

wait_ready() { # wait_ready PORT
    until curl -fso /dev/null "http://127.0.0.1:$1/readyz"; do
        kill -0 "${pids[-1]}" || { cat "$dir"/*.log; exit 1; }
        sleep 0.1
    done
}

start() { # start NAME COMMAND...
    "${@:2}" > "$dir/$1.log" 2>&1 &
    pids+=($!)
}

stop_last() {
    kill "${pids[-1]}" && wait "${pids[-1]}" || true
    unset 'pids[-1]'
}

start_nginx() { # start_nginx PORT: deploy/nginx before the server on that port
    rm -rf "$dir/nginx" && cp -r deploy/nginx "$dir/nginx" && mkdir -p "$dir/spool"
    sed -i "s|/var/log/nginx/|$dir/nginx/|; s|http {|http { client_body_temp_path $dir/spool/b; proxy_temp_path $dir/spool/p;|
        " "$dir/nginx/nginx.conf"
    echo "listen 127.0.0.1:$nginx_port ssl http2; server_name localhost;
        ssl_certificate $dir/tls.crt; ssl_certificate_key $dir/tls.key;" > "$dir/nginx/listen.conf"
    echo "listen 127.0.0.1:$((nginx_port + 1)); server_name localhost;" > "$dir/nginx/listen-plain.conf"
    echo "server 127.0.0.1:$1;" > "$dir/nginx/replicas.conf"
    echo "127.0.0.0/8 1;" > "$dir/nginx/trusted.conf"
    start nginx nginx -p "$dir/nginx" -c "$dir/nginx/nginx.conf" -g "pid $dir/nginx.pid; daemon off;"
    until curl -kfso /dev/null "https://localhost:$nginx_port/livez"; do sleep 0.1; done
}

bench() { # bench NAME: at the row budget of the server
    build/release/clotho bench --model "$model" --particles 256 --prompt-tokens 4 --tokens 32 --repeat 3 --json \
        2> /dev/null | tail -n 1 > "$dir/$1.json"
}

load() { # load NAME ARGUMENTS...
    echo "load: ${*:2}"
    "$python" deploy/load/load.py --url "https://localhost:$nginx_port" --cacert "$dir/tls.crt" --json \
        "${request[@]}" "${@:2}" > "$dir/$1.json" || true # errors are in the report
}

memory() { # memory NAME PID
    awk '/^VmRSS|^VmHWM/ { print $2 * 1024 }' "/proc/$2/status" | "$python" -c "import json, sys
peak, now = map(int, sys.stdin)
json.dump({'peak': peak, 'now': now}, open('$dir/$1.json', 'w'))"
}

events() { # events NAME URL: 1,000 streams of 100 events
    echo "events: $2"
    wrk -t1 -c1000 -d"$(awk -v s="$(seconds 20)" 'BEGIN { print int(s < 8 ? 8 : s) }')" --timeout 60 \
        -s deploy/load/events.lua "$2" | tail -n 1 > "$dir/$1.json"
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -keyout "$dir/tls.key" -out "$dir/tls.crt" 2> /dev/null

bench bench_before
start server build/release/clotho serve --model "$model" --port $server_port "${server_flags[@]}"
wait_ready $server_port
server=${pids[-1]}
start_nginx $server_port
memory memory_0 "$server"
load load_1 --streams 1 --warm-up "$(seconds 2)" --seconds "$(seconds 15)"
load load_16 --streams 16 --warm-up "$(seconds 3)" --seconds "$(seconds 20)"
load load_128 --streams 128 --warm-up "$(seconds 5)" --seconds "$(seconds 30)"
load load_1024 --streams 1024 --warm-up "$(seconds 10)" --seconds "$(seconds 60)"
memory memory_1 "$server"
load load_open --rate 20 --warm-up "$(seconds 3)" --seconds "$(seconds 30)"
stop_last
stop_last
bench bench_after

"$python" tests/support/make_model.py "$dir/stub.gguf" --tokenizer bytes > /dev/null
start stub build/release/clotho-stub serve --model "$dir/stub.gguf" --port $stub_port --max-queue 4000 \
    --max-connections 2100 --log-level warn
wait_ready $stub_port
events events_direct "http://127.0.0.1:$stub_port"
start_nginx $stub_port
events events_nginx "https://localhost:$nginx_port"

"$python" deploy/load/render.py "$dir" "$(basename "$model")" "${request[*]}" "${server_flags[*]}" > "$dir/report.md"
cp "$dir/report.md" "$out"
echo "written: $out"
