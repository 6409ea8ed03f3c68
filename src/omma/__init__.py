"""omma: from a folder of images to a vision model its owner can trust."""
