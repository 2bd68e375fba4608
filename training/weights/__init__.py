"""Weights as other projects release them: from their names to ours and back, a module per system.

`Weights` maps names to tensors. Ours are those of the parts of a recipe's model: "unet.conv_in.weight".
"""
