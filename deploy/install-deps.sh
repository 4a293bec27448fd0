#!/usr/bin/env bash
# Install what Clotho is built from on Debian 12 or Ubuntu 24.04, and nothing that is there already.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: deploy/install-deps.sh [--tests] [--check]
  --tests   also what the test suite needs: a C++ compiler, clang with its sanitizer and fuzzer runtime; nginx,
            promtool and a browser (Debian may start nginx and Prometheus as services when it installs them)
  --check   install nothing: list what is missing, exit 1 if anything is
After it, `cmake -S . -B DIR && cmake --build DIR` builds the program.
TEXT
}

# A compiler and build tools; the five libraries the program links; what the scripts beside this one use.
packages=(gcc libc6-dev make cmake ninja-build pkgconf
          libmicrohttpd-dev libcurl4-openssl-dev libjansson-dev libpcre2-dev libyaml-dev
          python3 python3-venv ca-certificates curl git)
cmake_wanted=3.25
check=false tests=false

for arg in "$@"; do
    case $arg in
        --tests) tests=true ;;
        --check) check=true ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

die() {
    echo "install-deps: $*" >&2
    exit 1
}

[[ -x $(command -v apt-get) && -x $(command -v dpkg-query) ]] ||
    die "this script knows Debian and Ubuntu only; elsewhere install the equivalents of: ${packages[*]}"

installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2> /dev/null) == installed ]]
}

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo "$@"
    else
        die "not root and no sudo here; as root run: $*"
    fi
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" < /dev/null
}

# The names of the packages given that are not installed, one a line.
missing_of() {
    local package
    for package in "$@"; do
        installed "$package" || echo "$package"
    done
}

install_missing() {
    local missing
    mapfile -t missing < <(missing_of "$@")
    [[ ${#missing[@]} == 0 ]] && return
    if $check; then
        echo "missing: ${missing[*]}"
        exit 1
    fi
    echo "installing: ${missing[*]}"
    $updated || apt update
    updated=true
    apt install --no-install-recommends "${missing[@]}" > /dev/null
}

# libFuzzer and the sanitizers of clang are in a package named after clang's major version.
clang_runtime() {
    local major
    major=$(clang -dumpversion | cut -d. -f1)
    echo "libclang-rt-$major-dev"
}

updated=false
install_missing "${packages[@]}"
if $tests; then
    install_missing g++ clang libomp-dev
    install_missing nginx-light openssl prometheus docker-compose strace systemd
    # Ubuntu's is a snap, which has no place in a container; its test is skipped there.
    if grep -qx ID=debian /etc/os-release; then
        install_missing chromium chromium-driver
    fi
    install_missing "$(clang_runtime)"
fi

cmake_here=$(cmake --version | sed -n '1s/cmake version //p')
[[ $(printf '%s\n' "$cmake_wanted" "$cmake_here" | sort -V | head -n 1) == "$cmake_wanted" ]] ||
    die "cmake $cmake_here is too old: $cmake_wanted or newer is needed"
