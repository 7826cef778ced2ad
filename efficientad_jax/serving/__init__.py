"""An HTTP server for a detector: clients post images and get scores and anomaly maps."""
