"""What `hypergradbench new` writes: files that work as they are, with names to be replaced."""
