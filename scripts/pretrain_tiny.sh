#!/usr/bin/env bash
# The whole recipe of toto-tiny: film -> tokenizer -> tokens -> decoder -> probe. Resumes where it
# stopped. About 45 minutes on two CPU cores. scripts/pretrain_tiny.sh [folder]
set -euo pipefail
cd "$(dirname "$0")/.."
work="${1:-data}"
python="${PYTHON:-.venv/bin/python}"
"$python" -m toto_robot.film out="$work/films" clips=224 seed=0
"$python" -m pretraining.train_tokenizer data="$work/films" out="$work/tokenizer" seed=0
"$python" -m pretraining.tokenize data="$work/films" tokenizer="$work/tokenizer" out="$work/shards"
"$python" -m pretraining.train model=tiny data="$work/shards" out="$work/toto-tiny" steps=1000 seed=0
"$python" -m toto_robot.probe backbone=toto-tiny backbone.weights="$work/toto-tiny" out="$work/probe"
