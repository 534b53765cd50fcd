"""Files and records of finished evaluations: results, ledgers, summaries, comparisons, merges."""
