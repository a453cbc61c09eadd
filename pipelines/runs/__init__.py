"""All that happens to one run: its folder, training, evaluation, prediction, export and figures."""
