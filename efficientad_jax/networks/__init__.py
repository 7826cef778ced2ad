"""What is computed: teacher, student and autoencoder (paper, sections 3.1 and 3.3)."""
