"""Layers that models of several kinds share."""
