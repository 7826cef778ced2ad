"""Images and datasets: decoding, loading, and the builders of published datasets."""
