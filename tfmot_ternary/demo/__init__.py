"""The embedded default: a small PaliGemma that answers questions about scenes of handwritten
digits."""
