"""Families: the architectures that can be converted. The only place that knows the names in a checkpoint."""
