"""Generated from proto/sandboxd/pb by `make proto`; never edited by hand."""
