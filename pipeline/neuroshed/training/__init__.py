"""Training the U-Net: samples, augmentation, the loop, checkpoints."""
