"""Files: solved runs and fits in one format, with a fingerprint of the problem that they belong to."""
