"""One model for every rate: codecs with gain units, and their training."""
