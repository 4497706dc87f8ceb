#!/bin/sh
# The virtual environments of the arms, below bench/venvs: fedopt with Ray (also for the plain loop and the harness),
# pfl and Flower. One that was made from this very file is left alone.
set -eu

cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3.11}"
mkdir -p bench/venvs

make_venv() {  # name, then what pip installs
    venv="bench/venvs/$1"
    shift
    if [ -f "$venv/.installed" ] && [ "$venv/.installed" -nt bench/venvs.sh ]; then
        return
    fi
    echo "making $venv"
    "$PYTHON" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    touch "$venv/.installed"
}

make_venv fedopt -c constraints.txt -e '.[ray,ecg]' psutil==7.2.2
make_venv pfl torch==2.13.0 pfl==0.6.0
make_venv flower -c constraints.txt torch==2.13.0 'flwr[simulation]==1.41.0' flwr-datasets==0.6.1
