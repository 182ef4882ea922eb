"""Small real datasets in the ImageNet folder layout."""
