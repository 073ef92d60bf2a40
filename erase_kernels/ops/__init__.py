"""Public functions, one file per operator: checks, choice of the backend, call."""
