"""von Oswald et al., "Uncovering mesa-optimization algorithms in Transformers" (arXiv 2309.05858)."""
