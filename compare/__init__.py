"""The same weights and the same tokens through this project and through trl: the same numbers.

table       the rows that are printed at the end, and what makes one fail
tokens      a tokenizer and ragged prompts and responses
trl_ppo     one iteration of trl's PPOTrainer on given responses, with what it had in hand at each backward pass
trl_step    one optimizer step of a transformers Trainer (trl's SFT and reward model), likewise
ours        the same passes through our stages
"""
