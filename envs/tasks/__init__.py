"""Task families, by kind of environment."""
