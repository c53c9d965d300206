"""One file a dataset: folders and annotation files become a listing of videos with labels, splits and ground truth."""
