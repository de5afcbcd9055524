"""One file for each pretraining method; the file's name is the method's name."""
