"""Programs compiled for an accelerator that need not be there, and their costs."""
