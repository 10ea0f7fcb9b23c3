"""Training: the loop, its checkpoints, its configuration, several processes, and the objectives."""
