"""Schedules: the learning rate of a step, as a share of its peak."""
