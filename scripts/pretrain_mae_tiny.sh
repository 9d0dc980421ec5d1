#!/usr/bin/env bash
# The whole recipe of mae-tiny: toto-tiny's films -> masked autoencoder -> probe. Resumes where it
# stopped. 8,440 steps take about 397 TFLOP, as many as toto-tiny's tokenizer and decoder together:
# about an hour of one CPU core. scripts/pretrain_mae_tiny.sh [folder] [steps]
# Needs transformers: pip install "toto-robot[compare]".
set -euo pipefail
cd "$(dirname "$0")/.."
work="${1:-data}"
steps="${2:-8440}"
python="${PYTHON:-.venv/bin/python}"
"$python" -m toto_robot.film out="$work/films" clips=224 seed=0
"$python" -m pretraining.train_mae data="$work/films" out="$work/mae-tiny" steps="$steps" seed=0
"$python" -m toto_robot.probe backbone=mae-tiny backbone.weights="$work/mae-tiny" out="$work/probe-mae"
