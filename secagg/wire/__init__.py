"""Bytes: the container, what an update says of itself, its frames and its tail. docs/wire-format.md specifies it."""
