"""Tokenizers: one part a file, each with ids 0-3 special, chat markers last, and text that never becomes either."""
