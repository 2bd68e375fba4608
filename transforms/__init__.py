"""One file per step of the work: plain functions over records first, then the thin Beam transform."""
