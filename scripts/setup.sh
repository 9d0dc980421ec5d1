#!/usr/bin/env bash
# Create .venv beside the code and install Toto-Robot into it: scripts/setup.sh [extra,extra]
# PYTHON=python3.12 picks the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:-}"
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; then
    echo "Toto-Robot needs Python 3.11 to 3.13, '$python' is $("$python" -V). Set PYTHON=python3.12, say." >&2
    exit 1
fi
bash scripts/install_system.sh ||
    echo "Going on without them: training from state works without OpenGL, images do not." >&2
[ -x .venv/bin/pip ] || "$python" -m venv .venv
# torch first, so that nothing below picks another build. TORCH_INDEX_URL chooses one: PyTorch's
# CPU wheels are 2 GB smaller than PyPI's CUDA wheels (see its "Get started" page for addresses).
.venv/bin/python -c 'import torch' 2>/dev/null ||
    .venv/bin/pip install -q torch==2.13.0 ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
# timm and detection read torchvision, whose operators load only beside torch of the same build.
if [ -n "${TORCH_INDEX_URL:-}" ] && [[ ",$extras," =~ ,(compare|detect|dev), ]]; then
    .venv/bin/pip install -q torchvision==0.28.0 --index-url "$TORCH_INDEX_URL"
fi
.venv/bin/pip install -q -e ".${extras:+[$extras]}"
# robomimic by itself: its own list of dependencies wants another torch, cmake and a compiler.
.venv/bin/pip install -q psutil termcolor six imageio
.venv/bin/pip install -q --no-deps robomimic==0.3.0
echo "Installed in $(pwd)/.venv"
