"""Everything around the model: data, geometry, clicks, losses, training, evaluation, pictures."""
