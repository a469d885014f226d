"""What a server reads out of updates that are encrypted in part: attacks on real bytes, and what they give back."""
