"""Readers of a user's own copies of standard data sets: one layout a file, nothing downloaded, nothing executed."""
