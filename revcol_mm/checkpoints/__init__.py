"""Find, read, match and write checkpoints, without running code that is pickled in them."""
