"""How OpenMP's threads wait; read from the environment when torch loads."""

PASSIVE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Idle OpenMP threads that spin without end slow a neighbour process down many times."""
SPINNING_THREADS = {"GOMP_SPINCOUNT": "10000"}
"""Some ten microseconds: longer than between two operations of a forward pass. GNU's OpenMP, which torch
brings on Linux, reads it before the policy."""
