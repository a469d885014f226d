"""What people see: progress, units, words, logs, findings, and how a server stands."""
