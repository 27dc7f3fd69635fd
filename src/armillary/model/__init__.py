"""Embedding, backbone and head put together, and the views that samplers have of them."""
