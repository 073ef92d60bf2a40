"""Triton kernels, one module per operator. Imported at the first call of one of them.

A module holds the kernels, a function per private operator (`erase_kernels._schemas`) that launches
them, and `compilations`, which lists how they are compiled for an architecture, so that they can
be compiled and inspected without a device.
"""
