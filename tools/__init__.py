"""Commands for developers: what Triton makes of the kernels, and the check on a GPU machine."""
