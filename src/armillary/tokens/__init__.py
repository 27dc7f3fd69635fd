"""Text as numbers: tokenizers, packed streams of tokens on disk, and batches as a pure function of (seed, step)."""
