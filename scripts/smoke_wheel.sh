#!/usr/bin/env bash
# Build the wheel, install it in an environment of its own, and run from an empty folder.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/pip wheel -q --no-deps -w "$work" .
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0
"$work/venv/bin/pip" install -q "$work"/*.whl
mkdir "$work/empty" && cd "$work/empty"
"$work/venv/bin/toto-rl" total_steps=512 num_envs=8 eval_episodes=8 hydra.run.dir="$work/run"
"$work/venv/bin/toto-doctor" --json >"$work/doctor.json"
test -s "$work/run/eval.json"
echo "wheel works"
