"""Readers: one file for each kind of files, all to the rows of `schema`."""
