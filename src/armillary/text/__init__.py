"""Text: sources bring documents, a corpus keeps them in splits. No torch."""
