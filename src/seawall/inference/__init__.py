"""Inference on whole scenes: backends, tiling, output buffer, products and STAC items."""
