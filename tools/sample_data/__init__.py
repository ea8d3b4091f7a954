"""The parts of tools/prepare_sample_data.py."""
