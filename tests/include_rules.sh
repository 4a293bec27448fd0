#!/usr/bin/env bash
# Who may include whom. Prints every include that breaks a rule, and exits 1 if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

# May a file of folder $1 include the project's header $2 (a path from the root)?
project_header_ok() {
    case "$1:$2" in
        kernels:kernels/*) ;;
        core:core/* | core:kernels/backend.h | core:kernels/num.h) ;;
        core:kernels/philox.h | core:kernels/dequant.h) ;;
        proto:proto/* | proto:core/*) ;;
        config:config/* | config:core/err.h) ;;
        server:server/* | server:proto/* | server:config/* | server:core/*) ;;
        *) return 1 ;;
    esac
}

# May file $1 include the library header $2? Every library has one home.
library_header_ok() {
    case "$2" in
        jansson.h) [[ $1 == proto/* || $1 == core/safetensors.c || $1 == config/* ]] ;;
        microhttpd.h | curl/*) [[ $1 == server/* ]] ;;
        yaml.h) [[ $1 == config/* || $1 == proto/tools/* ]] ;;
        pcre2.h) [[ $1 == core/* ]] ;;
        omp.h | *intrin.h | cpuid.h) [[ $1 == kernels/* ]] ;;
        *cuda* | *cublas*) [[ $1 == kernels/* ]] ;;
    esac
}

failed=0
complain() {
    echo "$*"
    failed=1
}

while IFS=: read -r file line text; do
    if [[ $text =~ \"([^\"]+)\" ]]; then
        header=$(realpath -m --relative-to=. "$(dirname "$file")/${BASH_REMATCH[1]}")
        project_header_ok "${file%%/*}" "$header" || complain "$file:$line: ${file%%/*}/ must not include $header"
    elif [[ $text =~ \<([^\>]+)\> ]]; then
        library_header_ok "$file" "${BASH_REMATCH[1]}" || complain "$file:$line: <${BASH_REMATCH[1]}> has no place here"
    fi
done < <(grep -rnE '^[[:space:]]*#[[:space:]]*include' kernels core proto config server --include='*.[ch]' --include='*.cu' --include='*.cuh')

while IFS=: read -r file line _; do
    complain "$file:$line: a CUDA type outside kernels/"
done < <(grep -rnE '\b(cuda[A-Z]\w*|cublas[A-Z]\w*|__half|__nv_bfloat16|__global__|__device__)\b' core proto config server --include='*.[ch]')

exit $failed
