import pytest
import torch
from jaxtyping import TypeCheckError

from rlhf_lightning.functional.kl import kl_k1


def test_a_wrong_shape_fails_in_tests_by_its_type_alone():
    with pytest.raises(TypeCheckError, match="kl_k1"):
        kl_k1(torch.zeros(2, 3), torch.zeros(2, 1))
