"""What happens beside training: checkpoints, metrics.csv, progress, sample tables."""
