"""Denoising and decoding, inputs and weights as systems of equations: what they cost to solve, by category."""
