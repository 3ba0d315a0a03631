"""Text-guided molecule generation by latent diffusion (3M-Diffusion), its backdoor (BadGraph), and its measures.

A house of its own with the floor plan of the image side: `data`, `motifs`, `model`, then what trains and measures
them. It needs RDKit and tokenizers: `pip install 'unbackdoor[molecules]'`.
"""
