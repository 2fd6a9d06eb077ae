"""``python -m layered_sglang.bench``: the same traffic to several serving systems, measured alike."""
