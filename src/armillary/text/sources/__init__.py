"""Sources of text: one file each, read in the same order every time."""
