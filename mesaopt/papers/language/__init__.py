"""Language models and recall: the mixers of the library compared, and what can go wrong with mesa."""
