"""Reading image files of any make, and writing results that are whole or not there."""
