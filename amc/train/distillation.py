"""Targets that are distributions over classes.

Distillation: the original's softened classes (Hinton et al. 2015, arXiv:1503.02531, section 2). Label smoothing: the
label with a share of the uniform distribution (Szegedy et al. 2016, arXiv:1512.00567, section 7).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def soft_targets(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL divergence of the student's softened classes from the teacher's, times T², mean over samples.

    Both are logits ``[N, K, …]``, divided by the temperature T. The factor T² keeps gradients of one size at any T.

    >>> import torch
    >>> soft_targets(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]), 4.0).item()
    0.0
    """
    student = F.log_softmax(outputs.float() / temperature, 1)
    teacher = F.log_softmax(wanted.float() / temperature, 1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1).mean() * temperature**2


def uniform_targets(outputs: Tensor) -> Tensor:
    """Cross-entropy of the uniform distribution with the network's classes, mean over samples.

    ``outputs`` are logits ``[N, K, …]``. Label smoothing by ε is (1 − ε) × the loss by labels + ε × this.

    >>> import torch
    >>> round(uniform_targets(torch.zeros(1, 4)).item(), 4) == round(torch.tensor(4.0).log().item(), 4)
    True
    """
    return -F.log_softmax(outputs.float(), 1).mean()
