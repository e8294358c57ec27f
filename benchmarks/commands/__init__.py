"""The commands of `hypergradbench`: one a file, a dataclass of its flags and the function that does it."""
