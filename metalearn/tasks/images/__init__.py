"""Pictures: files, how they become inputs, the store of decoded ones, augmentation, and the task `ImageFolder`."""
