"""Reports of finished evaluations: an HTML page, and tables and figures for a paper."""
