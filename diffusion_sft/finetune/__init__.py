"""Fine-tuning: which examples (`mixes`), the one loop (`loop`), and what is written beside it."""
