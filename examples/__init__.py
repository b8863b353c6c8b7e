"""Programs a person runs: thin, readable as a story."""
