"""Finding and reading cases: prepared trees, challenge files, inputs of predict.py, phantoms."""
