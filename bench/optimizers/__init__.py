"""Local optimizers on small tasks, each tuned over the same grid."""
