"""Generated from proto/sandboxd/pb/containerd/types/task by `make proto`; never edited by hand."""
