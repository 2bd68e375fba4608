"""The kinds of source that are read: each lists its inputs at the start of a job, and reads them on the workers."""
