"""A site's side of a federation, whatever carries its messages."""
