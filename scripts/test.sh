#!/usr/bin/env bash
# The README's second command: set everything up and pass the tests. scripts/test.sh [pytest words]
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
exec .venv/bin/python -m pytest -q "$@"
