"""Atomic writes, safe readers for files from untrusted sources, and the cache folder."""
