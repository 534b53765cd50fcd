"""Results and files of evaluations: ledgers, summaries, verdicts, comparisons, merged shards."""
