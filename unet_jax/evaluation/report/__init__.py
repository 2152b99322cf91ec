"""The report of an evaluation: one HTML file that opens anywhere, with all its pictures inside."""
