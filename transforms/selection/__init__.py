"""Which samples are kept: quality scores, near duplicates, the best k."""
