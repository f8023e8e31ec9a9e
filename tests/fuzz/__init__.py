"""Damaged and hostile files, options and programs, made with fixed seeds and given to whatever reads them."""
