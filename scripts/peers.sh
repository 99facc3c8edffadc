#!/usr/bin/env bash
# Makes a Python environment with the libraries that the benchmarks compare with: higher, TorchOpt and learn2learn, beside
# this checkout, all on the torch of constraints.txt.
#
#     bash scripts/peers.sh DIRECTORY               # DIRECTORY/bin/python is then what `bench.py memory --peers` takes
#     PYTHON=python3.12 bash scripts/peers.sh DIRECTORY
#
# An environment of its own, because none of the three has had a release since 2023: what they ask for must not reach the
# environment that the tests run in.
set -euo pipefail

if [ "$#" -ne 1 ]; then
    echo "peers: one argument, the directory of the new environment (outside the checkout)" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
if [ -e "$target" ] && [ ! -x "$target/bin/python" ]; then
    echo "peers: $target exists and is not a Python environment" >&2
    exit 2
fi
case "$target/" in
"$here"/*)
    echo "peers: $target is in the checkout; give a directory outside it" >&2
    exit 2
    ;;
esac

"${PYTHON:-python3}" -m venv "$target"
python="$target/bin/python"
"$python" -m pip install --quiet -c "$here/constraints.txt" -e "$here"
"$python" -m pip install --quiet -c "$here/constraints.txt" "higher==0.2.1" "torchopt==0.7.3"
PYTHON="$python" bash "$here/scripts/install_learn2learn.sh"
"$python" "$here/scripts/bench.py" memory --part check higher TorchOpt learn2learn
echo "peers: ready, $python"
