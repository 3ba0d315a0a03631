"""Grids of experiments: run, resume, spread over machines, rank."""
