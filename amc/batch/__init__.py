"""Many runs: models × data × budgets × devices × searchers × seeds, written down once.

``matrix`` reads the file, ``plan`` sees what is there already, ``pool`` runs the rest in processes of their own
(``worker``), ``run`` is the flow. Nothing here imports torch before a run does.
"""
