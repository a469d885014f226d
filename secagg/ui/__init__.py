"""What people see while they wait: progress, units, words, logs, findings."""
