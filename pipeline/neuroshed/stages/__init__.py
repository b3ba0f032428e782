"""One file a stage: what a block reads, and what it computes. Nothing else loops over blocks."""
