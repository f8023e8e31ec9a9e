"""Many runs: models × data × budgets × devices × searchers × seeds, described in one file.

``matrix`` reads the file, ``plan`` finds the state of every run, ``pool`` runs the rest in processes of their own
(``worker``), and ``run`` is the flow. Only a run itself imports torch.
"""
