"""What leaves: exported folders, pushes to the Hub, model cards."""
