"""What training gained over the model that it started from, on the same prompts.

Keys of each other model A against the reference R (sft, if evaluate.reference says nothing else):

    A/known/SCORE_gain_vs_R    mean over prompts of A's known score − R's
    A/known/SCORE_p_vs_R       two-sided p-value of a paired sign-flip test of that gain
    A/reward_gain_in_R_sd      (mean score of A − mean score of R) / standard deviation of R's scores over prompts
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from rlhf_lightning.evaluation.metrics import require_same_prompts
from rlhf_lightning.evaluation.samples import ModelSamples

PValue = Callable[[Sequence[float]], float]
"""Paired differences → two-sided p-value."""


def gains(
    samples_by_name: Mapping[str, ModelSamples], reference: str, p_value: PValue
) -> dict[str, float]:
    """The keys above; a gain in standard deviations only where the reference's scores differ.

    Raises: ValueError if two models were asked different prompts.
    """
    base = samples_by_name[reference]
    found: dict[str, float] = {}
    for name, samples in samples_by_name.items():
        if name == reference or not len(samples):
            continue
        require_same_prompts(samples, base)
        for score, values in samples.known.items():
            pairs = zip(values, base.known[score], strict=True)
            differences = [mine - other for mine, other in pairs]
            key = f"{name}/known/{score}"
            found[f"{key}_gain_vs_{reference}"] = statistics.fmean(differences)
            found[f"{key}_p_vs_{reference}"] = p_value(differences)
        if samples.scores and base.scores and len(base.scores) > 1:
            spread = statistics.stdev(base.scores)
            if spread > 0:
                gain = statistics.fmean(samples.scores) - statistics.fmean(base.scores)
                found[f"{name}/reward_gain_in_{reference}_sd"] = gain / spread
    return found
