"""Whole scenes, part by part: the tiles over them, the canvas they are painted on, the products and their metadata."""
