#!/usr/bin/env bash
# The README's first command: set everything up, then teach a policy to pick a cube up by looking.
# Words are passed on: scripts/main.sh total_steps=1_000_000 seed=1
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec .venv/bin/python -m toto_robot.rl env=franka_pick backbone=toto-tiny algo=dagger "$@"
