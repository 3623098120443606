namespace vstar {}
