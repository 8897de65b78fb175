"""Generated from proto/sandboxd/pb/cri/v1 by `make proto`; never edited by hand."""
