"""Generated from proto/sandboxd/pb/cri by `make proto`; never edited by hand."""
