"""Optimizers: parts that build one object over a network's named parameters."""
