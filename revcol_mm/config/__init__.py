"""Find configs, read them, override their values, and read recorded ones without running them."""
