"""Papers: every published item as a plan, figures and claims.

Start with :func:`mesaopt.papers.reproduce.reproduce`; the claims of a folder of results are read by
:func:`mesaopt.papers.claims.read_claims`, which does not need torch.
"""
