"""Tokenizers, token shards, and causal models pre-trained on them."""

import os

# Read when torch is imported: idle OpenMP threads sleep. Spinning, they wait for the thread that a
# neighbour has displaced (measured on 2 busy cores, 2 threads: 58 s per step of 4,096 tokens, not 2).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
