"""What a sample of each recipe is: its record, its members and its columns of the index."""
