"""How clean text is destroyed and how that is undone, position by position: what objectives and samplers share.

t = 0 is clean, t = 1 fully corrupted, s < t comes next. alpha(t) is the probability that a position is still as it was.
All randomness enters as uniform numbers, so that every law can be enumerated.
"""
