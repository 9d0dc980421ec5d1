#!/usr/bin/env bash
# The recipe of the packaged toto-base: the first half of the paper's base model, on a CPU, with its own light tokenizer
# of 8,192 codes. Film -> tokenizer -> tokens -> decoder -> 6 bits -> probe; resumes where it stopped. The
# tokenizer took half an hour and the decoder 70 minutes on shared cores. scripts/pretrain_base_cpu.sh [folder]
set -euo pipefail
cd "$(dirname "$0")/.."
work="${1:-data/base}"
python="${PYTHON:-.venv/bin/python}"
"$python" -m toto_robot.film out="$work/films" env=franka_pick clips=224 seed=0
for env in franka_cabinet kuka_pick kuka_cabinet; do
    "$python" -m toto_robot.film out="$work/films" env="$env" clips=96 seed=0
done
"$python" -m pretraining.train_tokenizer data="$work/films" out="$work/tokenizer" size=light steps=4000 \
    max_frames=24000 seed=0
"$python" -m pretraining.tokenize data="$work/films" tokenizer="$work/tokenizer" out="$work/shards"
"$python" -m pretraining.train model=base layers=6 data="$work/shards" out="$work/toto-base" steps=480 \
    frames=4 batch_size=4 lr=6e-4 warmup=30 checkpoint_s=300 seed=0
"$python" -m pretraining.pack backbone="$work/toto-base" out="$work/toto-base-6bit" bits=6
"$python" -m toto_robot.probe backbone=toto-base backbone.weights="$work/toto-base-6bit" controls=false out="$work/probe"
