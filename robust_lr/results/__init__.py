"""What an evaluation leaves behind: results, ledgers, summaries, comparisons, merges."""
