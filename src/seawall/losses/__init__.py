"""Training losses: segmentation losses, and losses robust to wrong labels."""
