"""What comes in: weights that others trained."""
