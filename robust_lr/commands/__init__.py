"""Commands beyond those of cli.py, one area a file."""
