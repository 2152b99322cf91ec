"""Images that are larger than the memory, block by block."""
