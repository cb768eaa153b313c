"""Worker processes killed under programs that must not notice."""
