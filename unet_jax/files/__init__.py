"""Reading image files from any source, and writing results that are either complete or absent."""
