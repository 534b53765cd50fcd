"""Reports: finished evaluations as one page, and as tables and figures for a paper."""
