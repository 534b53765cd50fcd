"""Suites: models x data sets x attacks x seeds from one file, or the tables of the paper."""
