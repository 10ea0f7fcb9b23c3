"""Labels from images and vector layers: water indices, label rules, agreement of sources, registration error."""
