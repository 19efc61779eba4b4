"""DPO's implicit reward: beta times how much more likely a trained policy makes a response than its reference does.

A reward model without a head. Its folder is the trained policy's, with the reference's weights in `reference/`.
Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 5, without the term that depends on the prompt alone.
"""

from typing import Any

from torch import Tensor, nn

FOLDER = "reference"


class Implicit(nn.Module):
    """Two causal language models that read the same ids; what reads the model's shape sees the policy."""

    base_model_prefix = "policy"
    num_labels = 1

    def __init__(self, policy: Any, reference: Any, beta: float) -> None:
        super().__init__()
        self.policy, self.reference, self.beta = policy, reference.requires_grad_(False), beta
        self.config = policy.config

    def score(self, policy_logp: Tensor, reference_logp: Tensor) -> Tensor:
        """[B] fp32 from log-probs of the response tokens [B, R], 0 outside the mask."""
        return self.beta * (policy_logp - reference_logp).sum(-1)
