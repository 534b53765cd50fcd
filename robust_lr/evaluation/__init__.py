"""Run attacks on a model and a data set, and produce one ledger row per image."""
