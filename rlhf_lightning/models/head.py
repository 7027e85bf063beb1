"""The layer that makes one number of a hidden state."""

from __future__ import annotations

from torch import Tensor, nn


class ScalarHead(nn.Linear):
    """A linear layer that computes in fp32 whatever its weights are: an engine may have made them bfloat16, and a
    bfloat16 score is one of a few hundred numbers."""

    @classmethod
    def of(cls, layer: nn.Linear) -> ScalarHead:
        """The same parameters, in fp32."""
        layer.float()
        head = cls(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
        )
        head.weight, head.bias = layer.weight, layer.bias
        return head

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias)
