"""What both sides of a federation say to each other, whatever carries it."""

from .messages import BusyError, ServerStatus

__all__ = ["BusyError", "ServerStatus"]
