"""Where a score comes from: anything that maps prompts and responses to one number each."""
