"""A site's side of a federation, whatever carries its messages."""

from .global_model import GlobalModel

__all__ = ["GlobalModel"]
