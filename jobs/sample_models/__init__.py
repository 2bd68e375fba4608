"""The scripts that train the models of the `sample` preset."""
