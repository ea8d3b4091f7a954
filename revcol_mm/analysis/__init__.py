"""Measurements and plots of tools/analysis: representations, complexity, speed, memory and training runs."""
