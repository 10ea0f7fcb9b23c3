"""Which part of the training labels is known: points, scribbles, image-level labels, a few chips."""
