"""Natural perturbations of Sentinel images, each in a physical quantity of a stated range."""
