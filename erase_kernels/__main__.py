"""``python -m erase_kernels`` prints what is available here and why the rest is not."""

from erase_kernels import backend_info

print(backend_info())
