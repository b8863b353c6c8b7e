"""Programs a person runs: thin, readable as a story."""

from pathlib import Path

PHOTOGRAPHS = Path(__file__).parent / "photographs"  # free for any use; its SOURCES.md says whose they are
