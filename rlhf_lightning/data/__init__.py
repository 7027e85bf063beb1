"""Where records come from, and how they become batches. `datamodule` alone knows Lightning."""
