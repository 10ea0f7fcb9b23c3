"""Find and change wrong labels: cross-validation, confident learning, training dynamics, comparison of sources."""
