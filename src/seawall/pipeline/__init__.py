"""The stages of a run: chips and split, training, evaluation, scene map; and the verbs on a trained model."""
