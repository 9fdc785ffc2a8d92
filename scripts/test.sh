#!/usr/bin/env bash
# Style, types and tests. Arguments go to pytest, for example: scripts/test.sh -m slow
source "$(dirname "$0")/environment.sh"
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
