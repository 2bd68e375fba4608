"""`subjectloom view`: a page over a whole dataset, served to this machine's browser."""
