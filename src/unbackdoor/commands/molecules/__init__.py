"""The commands of text-guided molecule generation, one module each."""
