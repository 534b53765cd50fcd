"""Suites, read from one file: every model, data set, attack and seed in combination, or the tables of the paper."""
