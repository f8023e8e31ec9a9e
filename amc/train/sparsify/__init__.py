"""Training that prepares for pruning (``amc train --sparsify``): penalties, gates and noise on whole channels."""

from amc.train.sparsify.preparation import (
    DenseNetwork,
    Preparation,
    Sparsifier,
    preparation_settings,
    preparations,
    prepared,
)

__all__ = ["DenseNetwork", "Preparation", "Sparsifier", "preparation_settings", "preparations", "prepared"]
