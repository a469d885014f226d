"""What benchmarks have left in a folder, as a page and pictures; `benchmarks/docs.py` makes the tables of the docs."""
