"""Memory of the process: what the allocator keeps, and large pages."""
