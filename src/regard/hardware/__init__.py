"""What attention costs on an accelerator: cascades of einsums, their passes and footprints, and models of chips.

Nothing here needs torch.
"""
