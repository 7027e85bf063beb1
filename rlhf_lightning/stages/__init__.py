"""The paper's three steps as LightningModules: `sft`, `reward_model`, `ppo` (with its `rollout`)."""
