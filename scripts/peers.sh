#!/usr/bin/env bash
# Makes a Python environment with the libraries that the benchmarks compare with: higher, TorchOpt, learn2learn,
# parallel-metalearn, JAX and optax, beside this checkout, all on the torch of constraints.txt.
#
#     bash scripts/peers.sh DIRECTORY               # DIRECTORY/bin/python is then what `bench.py speed --peers` takes
#     PYTHON=python3.12 bash scripts/peers.sh DIRECTORY
#
# An environment of its own, because the first three have had no release since 2023: what they ask for must not reach the
# environment that the tests run in. parallel-metalearn, whose package is called `metalearn` too, lies in a folder that is
# not on Python's path (scripts/benchmarks/aside.py). JAX is the CPU's; for a GPU give JAX="jax[cuda12]==0.10.2".
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
"$python" -m pip install --quiet -c "$here/constraints.txt" "${JAX:-jax==0.10.2}" "optax==0.2.8"
"$python" -m pip install --quiet --no-deps --upgrade --target "$target/aside" "parallel-metalearn==0.5.6"
PYTHON="$python" bash "$here/scripts/install_learn2learn.sh"
"$python" "$here/scripts/bench.py" memory --part check higher TorchOpt learn2learn
"$python" "$here/scripts/bench.py" speed --part check
echo "peers: ready, $python"
