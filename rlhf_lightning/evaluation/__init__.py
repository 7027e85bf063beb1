"""What is measured after training, and the page that shows it. No Lightning, no Hydra."""
