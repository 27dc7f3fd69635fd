"""How text is drawn from a model: from a view of it to finished rows. Every sampler is one file."""
