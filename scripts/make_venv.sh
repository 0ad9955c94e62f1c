#!/bin/sh
# Makes a virtual environment: make_venv.sh PYTHON FOLDER. Says, or does as root, what a bare Debian needs first.
set -e
python=$1 folder=$2
if ! command -v "$python" >/dev/null; then
    echo "error: no $python; install Python 3.11 or newer (Debian/Ubuntu: apt-get install python3 python3-venv)" >&2
    exit 1
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is $("$python" --version 2>&1); Palaestra needs 3.11 or newer (make PYTHON=python3.12 ...)" >&2
    exit 1
}
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
    else
        echo "error: Python's venv module is missing; run: sudo apt-get install python3-venv" >&2
        exit 1
    fi
fi
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
