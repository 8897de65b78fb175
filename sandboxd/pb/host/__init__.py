"""Generated from proto/sandboxd/pb/host by `make proto`; never edited by hand."""
