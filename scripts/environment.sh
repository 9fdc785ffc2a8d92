# Sourced by the other scripts: makes .venv once (again only when pyproject.toml changes) and puts it on the PATH.
# Needs Python >= 3.11 with pip; uses uv where it is installed. PYTHON=/path/to/python chooses another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "diffusion_sft needs Python 3.11 or newer; none found (set PYTHON=/path/to/python)" >&2
    exit 2
}

python=$(find_python)
stamp=.venv/installed
wanted=$(cat pyproject.toml scripts/environment.sh | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "Installing into .venv (once; a few gigabytes, mostly PyTorch) ..." >&2
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --clear --python "$python" .venv
        uv pip install --quiet --python .venv/bin/python -e '.[dev]'
    else
        "$python" -m venv --clear .venv
        .venv/bin/python -m pip install --quiet --upgrade pip
        .venv/bin/python -m pip install --quiet -e '.[dev]'
    fi
    echo "$wanted" >"$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1
