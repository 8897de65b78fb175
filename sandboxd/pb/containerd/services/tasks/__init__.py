"""Generated from proto/sandboxd/pb/containerd/services/tasks by `make proto`; never edited by hand."""
