"""Find, read, fit and write checkpoints without running anything that is pickled in them."""
