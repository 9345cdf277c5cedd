"""Which cases there are and what each holds: prepared, challenge, to be predicted, made up."""
