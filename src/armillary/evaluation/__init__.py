"""Measuring: likelihoods on a protocol, reference models to stand beside them, comparison with intervals."""
