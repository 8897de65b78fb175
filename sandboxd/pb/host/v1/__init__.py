"""Generated from proto/sandboxd/pb/host/v1 by `make proto`; never edited by hand."""
