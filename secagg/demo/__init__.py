"""The demo: white matter in the MNI152 brain, encrypted and raw, and its report."""
