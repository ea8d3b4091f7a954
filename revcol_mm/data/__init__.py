"""Inspect data sets and report problems in their files."""
