"""Measures of networks: accuracy, calibration, likelihood, fidelity, cost."""
