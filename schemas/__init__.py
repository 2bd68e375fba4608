"""What a record is: pure values, no model, no Beam."""
