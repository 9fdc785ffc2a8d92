#!/usr/bin/env bash
# Style, types and tests. Arguments go to pytest, for example: scripts/test.sh -m slow
source "$(dirname "$0")/environment.sh"
ruff check .
ruff format --check .
mypy
# One thread for each worker: on two cores two of them share nothing and wait for nobody.
OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile "$@"
