"""One `.avsc` file per record; the file is the source, `records.py` mirrors it."""
