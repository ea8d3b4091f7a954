"""Find configs, read them, change them by options, and read recorded ones without running them."""
