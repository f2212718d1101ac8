"""Zheng et al., On Mesa-Optimization in Autoregressively Trained Transformers (arXiv 2405.16845)."""
