"""The models on this machine: what is there, where it lies, whether it fits, and how one is brought in."""
