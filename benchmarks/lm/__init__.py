"""Whole language models: ours against llama.cpp and LiteRT (`python -m benchmarks.bench_lm`)."""
