"""One file per recipe: its config and its chain of transforms, in reading order."""
