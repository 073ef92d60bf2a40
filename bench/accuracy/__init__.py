"""An accuracy test bed: a small trained Qwen2.5-VL that reads labels, and what pruning costs it."""
