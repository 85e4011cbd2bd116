"""Generated from proto/lepton/v1 by proto/generate.py; never edited."""
