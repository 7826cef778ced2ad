"""The networks of the method: teacher, student and autoencoder (paper, Sections 3.1 and 3.3)."""
