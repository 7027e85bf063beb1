"""The maths of RLHF as pure functions of tensors: no config, logging, randomness or in-place edit.

masked      sums, means, variance and whitening over real tokens
logprobs    log-probabilities of given tokens, entropy
kl          the estimators k1, k2, k3; the adaptive coefficient
scores      what happens to a score before it is a reward: EOS rule, clip, running scale
advantages  per-token rewards, generalised advantage estimation
losses      policy, value, K-wise preference and causal LM losses
schedules   the learning rate over a stage
paired      whether two models differ on the same prompts
statistics  explained variance, accuracy, calibration, best-of-n
"""
