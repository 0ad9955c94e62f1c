#!/bin/sh
# Makes a virtual environment: make_venv.sh PYTHON FOLDER. Where Debian's venv module is missing it installs it as root,
# and prints the one command that does for anyone else.
set -eu
wanted=$1 folder=$2

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=
for candidate in "$wanted" python3.14 python3.13 python3.12 python3.11; do
    if new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: no Python 3.11 or newer: install one (Debian, Ubuntu: apt-get install python3 python3-venv)," \
        "or name it: make PYTHON=/path/to/python3" >&2
    exit 1
fi
if "$folder/bin/python" -m pip --version >/dev/null 2>&1 && new_enough "$folder/bin/python"; then
    exit 0
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
    else
        echo "error: Python's venv module is missing; run: sudo apt-get install $package" >&2
        exit 1
    fi
fi
"$python" -m venv --clear "$folder"
