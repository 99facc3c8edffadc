#!/usr/bin/env bash
# Builds learn2learn 0.2.0 from its sdist and installs it into the current Python environment.
#
#     bash scripts/install_learn2learn.sh            # into the environment of `python`
#     PYTHON=python3.12 bash scripts/install_learn2learn.sh
#
# `pip install learn2learn` fails on Python 3.11 and later: the C files in its sdist were written by a Cython that is too
# old. Its Cython sources are fine, so they are translated anew, in a temporary environment. Needs a C compiler and
# Python's headers.
#
# The wheel is installed without the dependencies that it declares, beside those that it needs to be imported (the extra
# `learn2learn` of metalearn-torch is these, and can not be more than these). Two are left out: gsutil is used nowhere;
# qpth, which only its MetaOptNet head uses, does not build or asks for numpy<2 in every release.
set -euo pipefail

version=0.2.0
dependencies=("gym>=0.26" "scipy>=1.10" "requests>=2.28" "tqdm>=4.60")

python=${PYTHON:-python}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

constraints=()
if [ -f "$here/constraints.txt" ]; then
    constraints=(-c "$here/constraints.txt")
fi

echo "--- learn2learn $version: what it builds with"
"$python" -m venv "$work/tools"
tools="$work/tools/bin/python"
"$tools" -m pip install --quiet "cython>=3,<4" "setuptools>=70"

echo "--- learn2learn $version: the sdist, translated and built"
"$tools" -m pip download --quiet --no-deps --no-binary learn2learn --no-build-isolation --dest "$work" "learn2learn==$version"
tar -xzf "$work/learn2learn-$version.tar.gz" -C "$work"
rm -r "$work/learn2learn-$version/tests" # its setup.py would install them as a package of the name `tests`
if ! (cd "$work/learn2learn-$version" && "$tools" setup.py --quiet build_ext bdist_wheel --dist-dir "$work/wheel") \
    >"$work/build.log" 2>&1; then
    cat "$work/build.log" >&2
    echo "install_learn2learn: the build failed (above). It needs a C compiler and the headers of Python." >&2
    exit 1
fi

echo "--- learn2learn $version: installed beside ${dependencies[*]}"
"$python" -m pip install --quiet ${constraints[@]+"${constraints[@]}"} "${dependencies[@]}"
"$python" -m pip install --quiet --no-deps --force-reinstall "$work"/wheel/learn2learn-*.whl
"$python" -m pip list --format=freeze | grep '^learn2learn=='
