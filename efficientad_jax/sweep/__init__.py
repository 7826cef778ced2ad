"""Many trainings at once: categories by seeds, over the devices of one host or several."""
