"""What tools/analysis measures: representations of images, how alike they are and what they hold."""
