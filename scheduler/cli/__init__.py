"""The `lepton` command: a composition root, one file per family of verbs."""
