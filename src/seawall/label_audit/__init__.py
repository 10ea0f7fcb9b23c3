"""Wrong labels found and mended: confident learning, training dynamics, relabelling, comparison of sources."""
