"""Where images come from: data sets by name, readers, augmentation on the device, batches."""
