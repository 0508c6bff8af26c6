"""Pure functions of arrays: state, step, optimiser, augmentation."""
