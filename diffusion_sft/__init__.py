"""Which concepts does a diffusion model already know, and what does teaching it the others cost?

Start reading at `study.py`: it tells the whole story in the order in which it happens.
"""

__version__ = "0.1.0"
