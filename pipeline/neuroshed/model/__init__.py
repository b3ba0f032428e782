"""The U-Net, its losses and targets, and inference on arrays; takes arrays and state dicts, knows no files."""
