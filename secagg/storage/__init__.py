"""Durable files: read strictly, written whole or not at all, on the disk before anybody is told."""
