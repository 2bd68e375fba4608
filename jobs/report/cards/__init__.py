"""A sample as a card of the report, for the recipes that want one of their own."""
