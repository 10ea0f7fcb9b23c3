"""The stages of a run: gather chips, learn from them, measure what was learned, survey a scene."""
