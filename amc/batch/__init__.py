"""Batches of runs: models × data × budgets × devices × searchers × seeds, described in one file.

``matrix`` reads the file, ``plan`` finds the state of every run, ``pool`` starts the unfinished ones in separate
processes (``worker``), and ``run`` is the whole flow. Only the processes of runs import torch.
"""
